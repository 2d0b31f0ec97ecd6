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
