//! One flow of one pod, decided: by the pod's worker as it happens, and by whoever explains it.

use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, Labels,
    PeerTerm, PolicyKey, PortTerm, Protocol, Rule, Target, has_labels,
};
use crate::identity::Identity;
use crate::model::{Mesh, ServiceKey, Workload};
use crate::reason::Reason;

/// Port of DNS, open to the cluster's resolvers.
pub const PORT_DNS: u16 = 53;

/// The other end of a flow, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Its address.
    pub address: IpAddr,
    /// Whether it proves `identity` in mutual TLS; else the flow is plain.
    pub member: bool,
    /// Its identity: proven, or, of a pod outside the mesh, what discovery says.
    pub identity: Option<&'a Identity>,
    /// Services it belongs to; outbound, the service that was dialled too.
    pub services: &'a [ServiceKey],
    /// Its labels.
    pub labels: &'a Labels,
}

/// A flow, seen from the pod that decides.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// The other end.
    pub peer: Peer<'a>,
    /// The port on the destination's workload.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What is decided on a flow, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Why it is refused; `None` where it is allowed.
    pub refused: Option<Reason>,
    /// The policy that decided; `None` where no rule matches, or none was asked.
    pub policy: Option<&'a PolicyKey>,
}

/// All that decides on the flows of one pod.
#[derive(Clone, Debug, Default)]
pub struct PodPolicy {
    authorizations: Vec<Arc<AuthorizationPolicy>>,
    authentications: Vec<Arc<AuthenticationPolicy>>,
    resolvers: Vec<IpAddr>,
}

impl PodPolicy {
    /// From the policies that select the pod, and the cluster's DNS resolvers.
    #[must_use]
    pub fn new(
        authorizations: Vec<Arc<AuthorizationPolicy>>,
        authentications: Vec<Arc<AuthenticationPolicy>>,
        resolvers: Vec<IpAddr>,
    ) -> Self {
        Self {
            authorizations,
            authentications,
            resolvers,
        }
    }

    /// Of a workload, from all the policies of the mesh.
    #[must_use]
    pub fn for_workload(mesh: &Mesh, workload: &Workload, resolvers: Vec<IpAddr>) -> Self {
        let (authorizations, authentications) = mesh.policies_for(workload);
        Self::new(authorizations, authentications, resolvers)
    }

    /// How inbound connections to a port of the pod are taken.
    #[must_use]
    pub fn authentication(&self, port: u16) -> AuthenticationMode {
        let nearness = |target: &Target| match target {
            Target::Mesh => 0,
            Target::Namespace => 1,
            Target::Service(_) | Target::Labels(_) => 2,
        };
        let modes = self.authentications.iter().filter_map(|policy| {
            let of_port = policy.ports.get(&port).copied();
            let mode = of_port.or(policy.mode)?;
            let strict = mode == AuthenticationMode::Strict;
            Some((nearness(&policy.target), of_port.is_some(), strict, mode))
        });
        modes
            .max_by_key(|(near, of_port, strict, _)| (*near, *of_port, *strict))
            .map_or(AuthenticationMode::Strict, |(.., mode)| mode)
    }

    /// Whether a decision in this direction can depend on what only discovery knows of a peer:
    /// labels and services, and of one that is no `member` of the mesh identity and namespace
    /// too. Where it can't, nobody has to be asked who the peer is.
    #[must_use]
    pub fn needs_attributes(&self, direction: Direction, member: bool) -> bool {
        let needs = |term: &PeerTerm| {
            let unproven = !member && (term.identity.is_some() || term.namespace.is_some());
            unproven || term.service.is_some() || !term.labels.is_empty()
        };
        let policies = self.authorizations.iter();
        policies
            .filter(|policy| policy.direction == direction)
            .flat_map(|policy| &policy.rules)
            .any(|rule| rule.peers.iter().any(needs))
    }

    /// Decides on a flow.
    #[must_use]
    pub fn decide(&self, flow: &Flow<'_>) -> Decision<'_> {
        let refused = |reason| Decision {
            refused: Some(reason),
            policy: None,
        };
        let plain_tcp = !flow.peer.member && flow.protocol == Protocol::Tcp;
        if plain_tcp
            && flow.direction == Direction::Inbound
            && self.authentication(flow.port) == AuthenticationMode::Strict
        {
            return refused(Reason::InboundPlaintext);
        }
        if let Some(policy) = self.first(Action::Deny, flow) {
            return Decision {
                refused: Some(Reason::PolicyDenied),
                policy: Some(policy),
            };
        }
        if self.is_dns(flow) {
            return Decision {
                refused: None,
                policy: None,
            };
        }
        if let Some(policy) = self.first(Action::Allow, flow) {
            return Decision {
                refused: None,
                policy: Some(policy),
            };
        }
        refused(no_rule(flow))
    }

    fn is_dns(&self, flow: &Flow<'_>) -> bool {
        flow.direction == Direction::Outbound
            && flow.port == PORT_DNS
            && self.resolvers.contains(&flow.peer.address)
    }

    /// The first policy, by key, with this action that matches.
    fn first(&self, action: Action, flow: &Flow<'_>) -> Option<&PolicyKey> {
        self.authorizations
            .iter()
            .filter(|policy| policy.action == action && policy.direction == flow.direction)
            .filter(|policy| policy.rules.iter().any(|rule| matches(policy, rule, flow)))
            .map(|policy| &policy.key)
            .min()
    }
}

/// The reason where no rule allows a flow.
fn no_rule(flow: &Flow<'_>) -> Reason {
    match (flow.protocol, flow.direction, flow.peer.member) {
        (Protocol::Udp, _, _) => Reason::UdpNotAllowed,
        (Protocol::Tcp, Direction::Outbound, false) if flow.peer.identity.is_none() => {
            Reason::DestinationUnknown
        }
        (Protocol::Tcp, Direction::Outbound, false) => Reason::DestinationNotEnrolled,
        _ => Reason::PolicyNoRule,
    }
}

fn matches(policy: &AuthorizationPolicy, rule: &Rule, flow: &Flow<'_>) -> bool {
    let deny = policy.action == Action::Deny;
    let port = |term: &PortTerm| {
        term.protocol == flow.protocol && term.port.is_none_or(|port| port == flow.port)
    };
    let ports = match rule.ports.is_empty() {
        // An ALLOW that names no port speaks of TCP.
        true => deny || flow.protocol == Protocol::Tcp,
        false => rule.ports.iter().any(port),
    };
    let plain = !flow.peer.member;
    let peers = match rule.peers.is_empty() {
        true => deny || !plain,
        false => rule.peers.iter().any(|term| {
            // What nobody proves must be named by its place, not by what it says it is.
            let named = term.cidr.is_some()
                || (flow.direction == Direction::Outbound && term.service.is_some());
            (deny || !plain || named) && is(policy, term, &flow.peer)
        }),
    };
    ports && peers
}

fn is(policy: &AuthorizationPolicy, term: &PeerTerm, peer: &Peer<'_>) -> bool {
    let own_labels = !term.labels.is_empty() && policy.target != Target::Mesh;
    let namespace = term
        .namespace
        .as_deref()
        .or(own_labels.then(|| policy.namespace()));
    let service = |key: &ServiceKey| peer.services.contains(key);
    term.identity
        .as_ref()
        .is_none_or(|id| peer.identity == Some(id))
        && namespace.is_none_or(|ns| peer.identity.is_some_and(|id| id.namespace() == ns))
        && term.service.as_ref().is_none_or(service)
        && has_labels(peer.labels, &term.labels)
        && term.cidr.is_none_or(|cidr| cidr.contains(&peer.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(direction: Direction, peer: PeerTerm) -> PodPolicy {
        let authorization = AuthorizationPolicy {
            key: "shop/p".into(),
            target: Target::Namespace,
            direction,
            action: Action::Allow,
            rules: vec![Rule {
                peers: vec![PeerTerm::default(), peer],
                ..Rule::default()
            }],
        };
        PodPolicy::new(vec![authorization.into()], Vec::new(), Vec::new())
    }

    #[test]
    fn attributes_are_needed_only_where_a_term_asks_for_them() {
        let cidr = PeerTerm {
            cidr: Some("10.0.0.0/8".parse().unwrap()),
            ..PeerTerm::default()
        };
        let namespace = PeerTerm {
            namespace: Some("shop".into()),
            ..PeerTerm::default()
        };
        let service = PeerTerm {
            service: Some("shop/web".into()),
            ..PeerTerm::default()
        };
        let labels = PeerTerm {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..PeerTerm::default()
        };
        for (term, of_members, of_others) in [
            (cidr, false, false),
            (namespace, false, true),
            (service, true, true),
            (labels, true, true),
        ] {
            let policy = policy(Direction::Inbound, term.clone());
            let needs = |member| policy.needs_attributes(Direction::Inbound, member);
            assert_eq!(
                (needs(true), needs(false)),
                (of_members, of_others),
                "{term:?}"
            );
            assert!(!policy.needs_attributes(Direction::Outbound, false));
        }
    }
}
