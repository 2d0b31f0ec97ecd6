//! Policies that this agent can't read, most likely because control is newer and they say
//! something that it does not know.
//!
//! The rule: such a policy must not open anything.
//!
//! - Where an earlier version is held, that one stays.
//! - An ALLOW is left out: what nothing allows is refused.
//! - Any other authorization policy may be a DENY, so all that it could deny is denied: its
//!   target where that can be read, else its namespace (for one of the mesh's own namespace,
//!   the mesh), in its direction where that can be read, else in both.
//! - An authentication scope is strict for its target, or as far as above.
//!
//! It is refused towards control, logged, counted and shown in the status in any case.

use mesh_api::ads::Resource;
use mesh_api::convert::policy::{PolicyEntry, authentication_from_wire, authorization_from_wire};
use mesh_api::policy::{self as wire, Policy};
use mesh_core::policy::MESH_NAMESPACE;
use prost::Message;

use super::resource::Change;

/// Policies that stand in for one that can't be read. Empty where nothing is needed.
pub(super) type StandIn = Vec<PolicyEntry>;

const DIRECTIONS: [(wire::Direction, &str); 2] = [
    (wire::Direction::Inbound, "inbound"),
    (wire::Direction::Outbound, "outbound"),
];

/// Key of the stand-in for one direction: a refusal that names it says what happened.
fn stand_in_key(key: &str, direction: &str) -> String {
    format!("{key}#unreadable-{direction}")
}

/// What stands in for a resource of the policy type that can't be read.
pub(super) fn stand_in(resource: &Resource) -> StandIn {
    let Some((kind, key)) = resource.name.split_once('/') else {
        return StandIn::new();
    };
    let any = resource.resource.as_ref();
    let policy = any.and_then(|any| Policy::decode(any.value.as_slice()).ok());
    match (kind, policy.and_then(|policy| policy.kind)) {
        ("authorization", Some(wire::policy::Kind::Authorization(policy))) => deny(key, &policy),
        ("authorization", _) => deny(key, &wire::AuthorizationPolicy::default()),
        ("authentication", Some(wire::policy::Kind::Authentication(policy))) => {
            strict(key, policy.target)
        }
        ("authentication", _) => strict(key, None),
        // No policy that this agent knows of.
        _ => StandIn::new(),
    }
}

/// Takes out what [`stand_in`] gave for the policy with this resource name. A policy of the other
/// kind may have the same key, and something that stands in for it: that stays.
pub(super) fn removal(name: &str) -> Vec<Change> {
    match name.split_once('/') {
        Some(("authorization", key)) => DIRECTIONS
            .map(|(_, direction)| Change::RemoveAuthorization(stand_in_key(key, direction)))
            .into(),
        Some(("authentication", key)) => {
            vec![Change::RemoveAuthentication(stand_in_key(key, "inbound"))]
        }
        _ => Vec::new(),
    }
}

fn deny(key: &str, unread: &wire::AuthorizationPolicy) -> StandIn {
    if unread.action == wire::Action::Allow as i32 {
        return StandIn::new();
    }
    let known = |direction: wire::Direction| unread.direction == direction as i32;
    let none_known = !DIRECTIONS.iter().any(|(direction, _)| known(*direction));
    let directions = DIRECTIONS
        .into_iter()
        .filter(|(direction, _)| none_known || known(*direction));
    let denial = |(direction, name)| {
        let policy = |target| wire::AuthorizationPolicy {
            key: stand_in_key(key, name),
            target,
            direction: direction as i32,
            action: wire::Action::Deny.into(),
            // Of everybody, on every port.
            rules: vec![wire::Rule::default()],
        };
        authorization_from_wire(&policy(unread.target.clone()))
            .or_else(|_| authorization_from_wire(&policy(Some(widest(key)))))
    };
    let denials = directions.map(denial).filter_map(Result::ok);
    denials.map(PolicyEntry::Authorization).collect()
}

fn strict(key: &str, target: Option<wire::Target>) -> StandIn {
    let policy = |target| wire::AuthenticationPolicy {
        key: stand_in_key(key, "inbound"),
        target,
        mode: wire::AuthenticationMode::Strict.into(),
        ports: Default::default(),
    };
    let scope = authentication_from_wire(&policy(target))
        .or_else(|_| authentication_from_wire(&policy(Some(widest(key)))));
    scope.into_iter().map(PolicyEntry::Authentication).collect()
}

/// All that a policy with this key can be for.
fn widest(key: &str) -> wire::Target {
    let mesh = key
        .split_once('/')
        .is_some_and(|(ns, _)| ns == MESH_NAMESPACE);
    let kind = match mesh {
        true => wire::target::Kind::Mesh(true),
        false => wire::target::Kind::Namespace(true),
    };
    wire::Target { kind: Some(kind) }
}
