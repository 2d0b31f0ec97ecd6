//! Policies taken apart: what a peer must be, once per term, and the ports that go with it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::{
    Action, AuthorizationPolicy, Direction, Labels, Peer, PeerTerm, PortTerm, Protocol, Rule,
    Target,
};
use crate::identity::Identity;
use crate::model::ServiceKey;

/// What a peer must be: a [`PeerTerm`], with all that its policy adds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    /// It proves its identity: plain peers are not meant.
    pub(super) member: bool,
    pub(super) identity: Option<Identity>,
    pub(super) namespace: Option<Arc<str>>,
    pub(super) service: Option<ServiceKey>,
    pub(super) labels: Labels,
    /// Never of v4-mapped addresses: those are IPv4.
    pub(super) cidr: Option<IpNet>,
}

impl Condition {
    fn new(policy: &AuthorizationPolicy, term: &PeerTerm) -> Self {
        // What nobody proves must be named by its place, not by what it says it is.
        let placed = term.cidr.is_some()
            || (policy.direction == Direction::Outbound && term.service.is_some());
        let own_labels = !term.labels.is_empty() && policy.target != Target::Mesh;
        let own_namespace = || own_labels.then(|| policy.namespace().into());
        Self {
            member: policy.action == Action::Allow && !placed,
            identity: term.identity.clone(),
            namespace: term.namespace.clone().or_else(own_namespace),
            service: term.service.clone(),
            labels: term.labels.clone(),
            cidr: term.cidr.map(canonical),
        }
    }

    /// Whether it holds for a peer, whose address is not v4-mapped.
    pub(super) fn holds(&self, peer: &Peer<'_>, address: IpAddr) -> bool {
        let namespace = |ns: &Arc<str>| peer.identity.is_some_and(|id| id.namespace() == &**ns);
        let identity = |id: &Identity| peer.identity == Some(id);
        (!self.member || peer.member)
            && self.cidr.is_none_or(|cidr| cidr.contains(&address))
            && self.identity.as_ref().is_none_or(identity)
            && self.namespace.as_ref().is_none_or(namespace)
            && self
                .service
                .as_ref()
                .is_none_or(|key| peer.services.contains(key))
            && super::has_labels(peer.labels, &self.labels)
    }

    /// Whether nothing but the address has a say.
    pub(super) fn by_address_alone(&self) -> bool {
        let of_address = Self {
            cidr: self.cidr,
            ..Self::default()
        };
        *self == of_address
    }

    /// Whether it depends on what only discovery knows of a peer that is a member, or of one
    /// that is not.
    pub(super) fn needs_attributes(&self, member: bool) -> bool {
        let unproven = !member && (self.identity.is_some() || self.namespace.is_some());
        (member || !self.member) && (unproven || self.service.is_some() || !self.labels.is_empty())
    }
}

/// One term of one rule.
#[derive(Clone, Debug)]
pub(super) struct Clause {
    pub(super) condition: Condition,
    pub(super) ports: Vec<PortTerm>,
}

/// A policy's clauses: it matches a flow exactly if one of them does.
pub(super) fn clauses(policy: &AuthorizationPolicy) -> impl Iterator<Item = Clause> {
    policy.rules.iter().flat_map(|rule| {
        let ports = ports(policy.action, rule);
        conditions(policy, rule).map(move |condition| Clause {
            condition,
            ports: ports.clone(),
        })
    })
}

fn conditions(policy: &AuthorizationPolicy, rule: &Rule) -> impl Iterator<Item = Condition> {
    let everybody = rule.peers.is_empty().then(|| Condition {
        member: policy.action == Action::Allow,
        ..Condition::default()
    });
    let named = rule.peers.iter().map(|term| Condition::new(policy, term));
    everybody.into_iter().chain(named)
}

fn ports(action: Action, rule: &Rule) -> Vec<PortTerm> {
    let every = |protocol| PortTerm {
        port: None,
        protocol,
    };
    match (rule.ports.is_empty(), action) {
        (false, _) => rule.ports.iter().copied().collect(),
        // An ALLOW that names no port speaks of TCP.
        (true, Action::Allow) => vec![every(Protocol::Tcp)],
        (true, Action::Deny) => vec![every(Protocol::Tcp), every(Protocol::Udp)],
    }
}

/// A block of v4-mapped addresses as the block of IPv4 that it is.
#[must_use]
pub fn canonical(cidr: IpNet) -> IpNet {
    let IpNet::V6(v6) = cidr else {
        return cidr.trunc();
    };
    let v4 = v6.trunc().network().to_ipv4_mapped();
    let length = v6.prefix_len().checked_sub(96);
    let mapped = v4.zip(length).map(|(v4, length)| Ipv4Net::new(v4, length));
    match mapped {
        Some(Ok(v4)) => IpNet::V4(v4),
        _ => cidr.trunc(),
    }
}
