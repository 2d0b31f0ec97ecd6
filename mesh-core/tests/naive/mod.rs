//! Policy as the documentation of its types has it: every policy is read for every flow.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, PORT_DNS,
    PeerTerm, PodPolicy, Protocol, Rule, Target,
};
use mesh_core::reason::Reason;

use crate::call::Call;

/// What decides on one pod's flows.
pub(crate) struct Model {
    pub(crate) authorizations: Vec<Arc<AuthorizationPolicy>>,
    pub(crate) authentications: Vec<Arc<AuthenticationPolicy>>,
    pub(crate) resolvers: Vec<IpAddr>,
}

impl Model {
    /// Holds the engine to what the model decides on a flow, which it returns.
    ///
    /// # Panics
    /// If the engine decides otherwise.
    pub(crate) fn check(
        &self,
        engine: &PodPolicy,
        call: &Call,
    ) -> (Option<Reason>, Option<String>) {
        let decision = engine.decide(&call.flow());
        let decided = (decision.refused, decision.policy.map(ToString::to_string));
        let expected = self.decide(call);
        assert_eq!(decided, expected, "{call:?}");
        assert_eq!(engine.authentication(call.port), self.mode(call.port));
        expected
    }

    fn decide(&self, flow: &Call) -> (Option<Reason>, Option<String>) {
        let inbound = flow.direction == Direction::Inbound;
        let plain_tcp = flow.protocol == Protocol::Tcp && !flow.member;
        if inbound && plain_tcp && self.mode(flow.port) == AuthenticationMode::Strict {
            return (Some(Reason::InboundPlaintext), None);
        }
        if let Some(policy) = self.first(Action::Deny, flow) {
            return (Some(Reason::PolicyDenied), Some(policy));
        }
        let at_resolver = self
            .resolvers
            .iter()
            .any(|r| r.to_canonical() == flow.address.to_canonical());
        if !inbound && flow.port == PORT_DNS && at_resolver {
            return (None, None);
        }
        if let Some(policy) = self.first(Action::Allow, flow) {
            return (None, Some(policy));
        }
        let reason = match flow.protocol {
            Protocol::Udp => Reason::UdpNotAllowed,
            Protocol::Tcp if inbound || flow.member => Reason::PolicyNoRule,
            Protocol::Tcp if flow.identity.is_some() => Reason::DestinationNotEnrolled,
            Protocol::Tcp => Reason::DestinationUnknown,
        };
        (Some(reason), None)
    }

    fn first(&self, action: Action, flow: &Call) -> Option<String> {
        let mut found: Vec<String> = Vec::new();
        for policy in &self.authorizations {
            if policy.action != action || policy.direction != flow.direction {
                continue;
            }
            for rule in &policy.rules {
                if port_matches(action, rule, flow) && peer_matches(policy, rule, flow) {
                    found.push(policy.key.to_string());
                }
            }
        }
        found.sort();
        found.into_iter().next()
    }

    fn mode(&self, port: u16) -> AuthenticationMode {
        let near: [fn(&Target) -> bool; 3] = [
            |t| matches!(t, Target::Labels(_) | Target::Service(_)),
            |t| matches!(t, Target::Namespace),
            |t| matches!(t, Target::Mesh),
        ];
        for is_near in near {
            let scopes = || self.authentications.iter().filter(|p| is_near(&p.target));
            let of_port: Vec<_> = scopes().filter_map(|p| p.ports.get(&port)).collect();
            let of_rest: Vec<_> = scopes().filter_map(|p| p.mode.as_ref()).collect();
            for modes in [of_port, of_rest] {
                if modes.contains(&&AuthenticationMode::Strict) {
                    return AuthenticationMode::Strict;
                }
                if !modes.is_empty() {
                    return AuthenticationMode::Permissive;
                }
            }
        }
        AuthenticationMode::Strict
    }
}

fn port_matches(action: Action, rule: &Rule, flow: &Call) -> bool {
    if rule.ports.is_empty() {
        return flow.protocol == Protocol::Tcp || action == Action::Deny;
    }
    rule.ports.iter().any(|term| {
        term.protocol == flow.protocol && (term.port.is_none() || term.port == Some(flow.port))
    })
}

fn peer_matches(policy: &AuthorizationPolicy, rule: &Rule, flow: &Call) -> bool {
    let deny = policy.action == Action::Deny;
    if rule.peers.is_empty() {
        return deny || flow.member;
    }
    rule.peers.iter().any(|term| {
        let by_place = term.cidr.is_some()
            || (term.service.is_some() && flow.direction == Direction::Outbound);
        term_matches(policy, term, flow) && (deny || flow.member || by_place)
    })
}

fn term_matches(policy: &AuthorizationPolicy, term: &PeerTerm, flow: &Call) -> bool {
    let namespace = flow.identity.as_ref().map(|id| id.namespace().to_owned());
    if term.identity.is_some() && term.identity != flow.identity {
        return false;
    }
    if term.namespace.is_some() && term.namespace.as_deref() != namespace.as_deref() {
        return false;
    }
    if !term
        .service
        .iter()
        .all(|wanted| flow.services.contains(wanted))
    {
        return false;
    }
    for (key, value) in &term.labels {
        if flow.labels.get(key) != Some(value) {
            return false;
        }
    }
    let own_pods =
        !term.labels.is_empty() && term.namespace.is_none() && policy.target != Target::Mesh;
    if own_pods && namespace.as_deref() != policy.key.split('/').next() {
        return false;
    }
    term.cidr.is_none_or(|cidr| holds(cidr, flow.address))
}

fn holds(cidr: IpNet, address: IpAddr) -> bool {
    match (cidr, address.to_canonical()) {
        (IpNet::V4(cidr), IpAddr::V4(address)) => cidr.contains(&address),
        (IpNet::V6(cidr), IpAddr::V6(address)) => cidr.contains(&address),
        (IpNet::V4(_), IpAddr::V6(_)) => false,
        // A block of mapped addresses alone is a block of IPv4.
        (IpNet::V6(cidr), IpAddr::V4(address)) => {
            cidr.prefix_len() >= 96 && cidr.contains(&address.to_ipv6_mapped())
        }
    }
}
