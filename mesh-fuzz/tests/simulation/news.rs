//! Policies that say something an old agent doesn't know.

use mesh_api::ads::{DeltaDiscoveryResponse, Resource};
use mesh_api::policy::{AuthenticationPolicy, AuthorizationPolicy, Policy, policy::Kind};
use mesh_core::model::Mesh;
use mesh_core::policy::{self as model, PolicyKey};
use prost::Message as _;

use crate::sources::NEWS_PORT;

/// A value of an enumeration that nobody has defined yet.
const UNKNOWN: i32 = 99;

/// What policies are told apart by: authorization or authentication, and key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Authorization(PolicyKey),
    Authentication(PolicyKey),
}

/// The policies of a mesh that an old agent can't read.
pub(crate) fn unreadable(mesh: &Mesh) -> Vec<Key> {
    let authorizations = mesh.authorizations().filter(|p| is_news(p));
    let authorizations = authorizations.map(|p| Key::Authorization(p.key.clone()));
    let authentications = mesh.authentications().filter(|p| is_news_scope(p));
    let authentications = authentications.map(|p| Key::Authentication(p.key.clone()));
    authorizations.chain(authentications).collect()
}

/// Whether an old agent can't read it.
fn is_news(policy: &model::AuthorizationPolicy) -> bool {
    let mut ports = policy.rules.iter().flat_map(|rule| &rule.ports);
    ports.any(|port| port.port == Some(NEWS_PORT))
}

/// Whether an old agent can't read it.
fn is_news_scope(policy: &model::AuthenticationPolicy) -> bool {
    policy.ports.contains_key(&NEWS_PORT)
}

/// Makes of a response what an old agent makes of it. Returns the names of what it can't read.
pub(crate) fn age(response: &mut DeltaDiscoveryResponse) -> Vec<String> {
    let aged = response.resources.iter_mut().filter_map(age_resource);
    aged.collect()
}

fn age_resource(resource: &mut Resource) -> Option<String> {
    let any = resource.resource.as_mut()?;
    if any.type_url != mesh_api::POLICY_TYPE_URL {
        return None;
    }
    let mut policy = Policy::decode(any.value.as_slice()).ok()?;
    let news = match policy.kind.as_mut()? {
        Kind::Authorization(policy) => age_authorization(policy),
        Kind::Authentication(policy) => age_authentication(policy),
    };
    any.value = policy.encode_to_vec();
    news.then(|| resource.name.clone())
}

/// What is new is not the same in all of them.
fn age_authorization(policy: &mut AuthorizationPolicy) -> bool {
    let mut ports = policy.rules.iter().flat_map(|rule| &rule.ports);
    let news = ports.any(|port| port.port == u32::from(NEWS_PORT));
    if news {
        match policy.key.len() % 3 {
            0 => policy.action = UNKNOWN,
            1 => policy.direction = UNKNOWN,
            _ => policy.target = None,
        }
    }
    news
}

fn age_authentication(policy: &mut AuthenticationPolicy) -> bool {
    let news = policy.ports.contains_key(&u32::from(NEWS_PORT));
    if news {
        policy.mode = UNKNOWN;
    }
    news
}
