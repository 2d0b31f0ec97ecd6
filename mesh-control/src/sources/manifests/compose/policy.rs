//! From checked policies to the model's, and what of them is allowed but likely not meant.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use mesh_core::budget::WorkerBudget;
use mesh_core::identity::{Identity, IdentityError, TrustDomain};
use mesh_core::model::{Mesh, ServiceKey, Workload};
use mesh_core::policy::{
    AuthenticationPolicy, AuthorizationPolicy, MESH_NAMESPACE, PeerTerm, PortTerm, Rule, Target,
};

use crate::registry::{Scope, service_key};
use crate::sources::manifests::Mistake;
use crate::sources::manifests::check::{namespaces, services};
use crate::sources::manifests::document::{Found, Place, Placed};
use crate::sources::manifests::locate::{Step, steps};
use crate::sources::manifests::schema::policy::{
    self as schema, Authentication, Authorization, Object,
};
use crate::sources::manifests::schema::values::{PortTerm as WrittenPort, ServiceRef, SpiffeId};

/// Puts the policies into the model, all but those that the mistakes are about.
pub(super) fn insert(
    found: &mut Found,
    mesh: &mut Mesh,
    trust_domain: &TrustDomain,
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for placed in &found.authorizations {
        match authorization(&placed.object, trust_domain) {
            Ok(policy) => {
                mesh.insert_authorization(policy);
            }
            Err(error) => {
                let at = steps!["spec", "rules"];
                mistakes.push(placed.place.mistake(&at, error.to_string()));
            }
        }
    }
    for placed in &found.authentications {
        mesh.insert_authentication(authentication(&placed.object));
    }
    let mut warnings = Warnings::new(found, mesh, trust_domain).all(found);
    found.warnings.append(&mut warnings);
    mistakes
}

/// The budgets of workers.
pub(super) fn budgets(found: &Found) -> Vec<WorkerBudget> {
    let objects = found.budgets.iter().map(|placed| &placed.object);
    objects
        .map(|object| WorkerBudget {
            key: object.key(),
            target: target(object.spec.target.as_ref(), object.namespace()),
            fields: object.spec.fields(),
        })
        .collect()
}

/// Whom the one policy that was found is for.
pub(in crate::sources::manifests) fn scope(found: &Found) -> Option<Scope> {
    fn of<S>(object: &Object<S>, target: Target, kind: &str) -> Scope {
        Scope {
            namespace: object.namespace().to_owned(),
            target,
            policy: (!kind.is_empty()).then(|| format!("{kind}/{}", object.key())),
        }
    }
    if let Some(Placed { object, .. }) = found.authorizations.first() {
        let whom = target(object.spec.target.as_ref(), object.namespace());
        return Some(of(object, whom, "authorization"));
    }
    if let Some(Placed { object, .. }) = found.authentications.first() {
        let whom = target(object.spec.target.as_ref(), object.namespace());
        return Some(of(object, whom, "authentication"));
    }
    if let Some(Placed { object, .. }) = found.budgets.first() {
        let whom = target(object.spec.target.as_ref(), object.namespace());
        return Some(of(object, whom, ""));
    }
    let Placed { object, .. } = found.service_policies.first()?;
    let service = service_key(object.namespace(), &object.spec.service.0);
    Some(of(object, Target::Service(service.into()), ""))
}

fn authorization(
    object: &Object<Authorization>,
    trust_domain: &TrustDomain,
) -> Result<AuthorizationPolicy, IdentityError> {
    let namespace = object.namespace();
    let spec = &object.spec;
    let rule = |rule: &schema::Rule| {
        let peers = rule.peers.iter().flatten();
        let ports = rule.ports.iter().flatten();
        Ok(Rule {
            peers: peers
                .map(|term| peer(term, namespace, trust_domain))
                .collect::<Result<_, IdentityError>>()?,
            ports: ports.map(port).collect(),
        })
    };
    Ok(AuthorizationPolicy {
        key: object.key(),
        target: target(spec.target.as_ref(), namespace),
        direction: spec.direction.0,
        action: spec.action.0,
        rules: spec.rules.iter().map(rule).collect::<Result<_, _>>()?,
    })
}

fn authentication(object: &Object<Authentication>) -> AuthenticationPolicy {
    let spec = &object.spec;
    let ports = spec.ports.iter();
    AuthenticationPolicy {
        key: object.key(),
        target: target(spec.target.as_ref(), object.namespace()),
        mode: spec.mode.as_ref().map(|mode| mode.0),
        ports: ports.map(|(port, mode)| (port.0, mode.0)).collect(),
    }
}

fn target(target: Option<&schema::Target>, namespace: &str) -> Target {
    match target {
        None => Target::Namespace,
        Some(schema::Target {
            service: Some(name),
            ..
        }) => Target::Service(service_key(namespace, &name.0).into()),
        Some(schema::Target {
            labels: Some(labels),
            ..
        }) => Target::Labels(labels.clone()),
        Some(_) => Target::Mesh,
    }
}

fn peer(
    peer: &schema::Peer,
    namespace: &str,
    trust_domain: &TrustDomain,
) -> Result<PeerTerm, IdentityError> {
    let shorthand = account(peer, trust_domain).transpose()?;
    let identity = peer.identity.as_ref().map(|id| id.0.clone());
    Ok(PeerTerm {
        identity: identity.or(shorthand),
        namespace: peer.namespace.as_ref().map(|ns| ns.0.as_str().into()),
        service: peer
            .service
            .as_ref()
            .map(|service| key_of(service, namespace)),
        labels: peer.labels.clone().unwrap_or_default(),
        cidr: peer.cidr.as_ref().map(|cidr| cidr.0),
    })
}

/// The identity of the service account that a peer names.
fn account(
    peer: &schema::Peer,
    trust_domain: &TrustDomain,
) -> Option<Result<Identity, IdentityError>> {
    let (namespace, name) = (peer.namespace.as_ref()?, peer.service_account.as_ref()?);
    Some(Identity::new(trust_domain.clone(), &namespace.0, &name.0))
}

fn key_of(ServiceRef((namespace, name)): &ServiceRef, own: &str) -> ServiceKey {
    service_key(namespace.as_deref().unwrap_or(own), name).into()
}

fn port(written: &WrittenPort) -> PortTerm {
    let WrittenPort { port, protocol } = *written;
    PortTerm { port, protocol }
}

/// What the warnings are found with.
struct Warnings<'a> {
    namespaces: HashSet<String>,
    services: HashSet<ServiceKey>,
    identities: HashSet<&'a Identity>,
    by_namespace: BTreeMap<&'a str, Vec<&'a Arc<Workload>>>,
    trust_domain: &'a TrustDomain,
}

impl<'a> Warnings<'a> {
    fn new(found: &Found, mesh: &'a Mesh, trust_domain: &'a TrustDomain) -> Self {
        let mut by_namespace: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for workload in mesh.workloads() {
            let namespace = workload.identity.namespace();
            by_namespace.entry(namespace).or_default().push(workload);
        }
        let services = services(found);
        Self {
            namespaces: namespaces(found).into_iter().map(str::to_owned).collect(),
            services: services
                .keys()
                .map(|(namespace, name)| service_key(namespace, name).into())
                .collect(),
            identities: mesh.workloads().map(|w| &w.identity).collect(),
            by_namespace,
            trust_domain,
        }
    }

    fn all(&self, found: &Found) -> Vec<Mistake> {
        let mut warnings = Vec::new();
        for placed in &found.authorizations {
            let (object, place) = (&placed.object, &placed.place);
            let target = object.spec.target.as_ref();
            warnings.extend(self.selects_none(object, target, place));
            for (r, rule) in object.spec.rules.iter().enumerate() {
                for (p, peer) in rule.peers.iter().flatten().enumerate() {
                    let at = steps!["spec", "rules", r, "peers", p];
                    self.peer(peer, object.namespace(), |field, what| {
                        let path = [&at[..], &steps![field]].concat();
                        warnings.push(place.mistake(&path, what));
                    });
                }
            }
        }
        for placed in &found.authentications {
            let target = placed.object.spec.target.as_ref();
            warnings.extend(self.selects_none(&placed.object, target, &placed.place));
        }
        for placed in &found.budgets {
            let target = placed.object.spec.target.as_ref();
            warnings.extend(self.selects_none(&placed.object, target, &placed.place));
        }
        warnings
    }

    /// A policy without effect, as no enrolled pod is selected.
    fn selects_none<S>(
        &self,
        object: &Object<S>,
        given: Option<&schema::Target>,
        place: &Place,
    ) -> Option<Mistake> {
        let namespace = object.namespace();
        let target = target(given, namespace);
        let selected: Vec<_> = self
            .by_namespace
            .iter()
            .filter(|(ns, _)| target == Target::Mesh || **ns == namespace)
            .flat_map(|(_, workloads)| workloads)
            .filter(|workload| target.selects(namespace, workload))
            .map(|workload| workload.enrolled())
            .collect();
        let what = match (selected.is_empty(), selected.contains(&true)) {
            (_, true) => return None,
            (true, _) if namespace == MESH_NAMESPACE && given.is_none() => {
                "selects no pod: for the whole mesh, say target: {mesh: true}"
            }
            (true, _) => "selects no pod",
            (false, _) => "selects no pod that is enrolled, so it has no effect",
        };
        let at: &[Step] = match given {
            Some(_) => &steps!["spec", "target"],
            None => &steps!["metadata", "name"],
        };
        Some(place.mistake(at, what))
    }

    /// What a peer names that isn't there.
    fn peer(&self, peer: &schema::Peer, own: &str, mut warn: impl FnMut(&str, String)) {
        if let Some(SpiffeId(identity)) = &peer.identity {
            if identity.trust_domain() != self.trust_domain {
                let what = format!(
                    "{} is not the mesh's trust domain, {}: no member can have this identity",
                    identity.trust_domain(),
                    self.trust_domain
                );
                warn("identity", what);
            } else if !self.identities.contains(identity) {
                warn("identity", "no pod has this identity".to_owned());
            }
        }
        if let Some(namespace) = &peer.namespace
            && !self.namespaces.contains(&namespace.0)
        {
            let what = format!("there is no Namespace {:?} in these manifests", namespace.0);
            warn("namespace", what);
        } else if let Some(Ok(identity)) = account(peer, self.trust_domain)
            && !self.identities.contains(&identity)
        {
            warn(
                "serviceAccount",
                format!("no pod has the identity {identity}"),
            );
        }
        if let Some(service) = &peer.service
            && !self.services.contains(&key_of(service, own))
        {
            let (namespace, name) = &service.0;
            let namespace = namespace.as_deref().unwrap_or(own);
            let what = format!("there is no Service {name:?} in namespace {namespace:?}");
            warn("service", what);
        }
    }
}
