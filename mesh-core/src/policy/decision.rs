//! One flow of one pod, decided: by the pod's worker as it happens, and by whoever explains it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::authentication::Modes;
use super::clause::{Condition, clauses};
use super::index::{Filed, Index};
use super::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, Labels,
    PolicyKey, Protocol,
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
    index: Index,
    /// DENY policies by key, then ALLOW policies by key: a clause's rank is its policy's place.
    ranked: Vec<PolicyKey>,
    /// How many of `ranked` are DENY policies.
    denying: usize,
    needs_attributes: NeedsAttributes,
    modes: Modes,
    /// Sorted, and none v4-mapped.
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
        let mut ranks: BTreeMap<_, usize> = authorizations.iter().map(|p| (rank(p), 0)).collect();
        for (place, known) in ranks.values_mut().enumerate() {
            *known = place;
        }
        let mut needs_attributes = NeedsAttributes::default();
        let mut filed = Vec::new();
        for policy in &authorizations {
            let rank = u32::try_from(ranks[&rank(policy)]).expect("fewer than 2^32 policies");
            for clause in clauses(policy) {
                needs_attributes.add(policy.direction, &clause.condition);
                filed.extend(clause.ports.into_iter().map(|port| Filed {
                    direction: policy.direction,
                    port,
                    condition: clause.condition.clone(),
                    rank,
                }));
            }
        }
        let denying = ranks.keys().filter(|(allow, _)| !allow).count();
        let ranked = ranks.into_keys().map(|(_, key)| key.clone()).collect();
        let resolvers: BTreeSet<_> = resolvers.into_iter().map(|a| a.to_canonical()).collect();
        Self {
            index: Index::new(filed),
            ranked,
            denying,
            needs_attributes,
            modes: Modes::new(authentications),
            resolvers: resolvers.into_iter().collect(),
            authorizations,
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
        self.modes.of(port)
    }

    /// Whether a decision in this direction can depend on what only discovery knows of a peer:
    /// labels and services, and of one that is no `member` of the mesh identity and namespace
    /// too. Where it can't, nobody has to be asked who the peer is.
    #[must_use]
    pub fn needs_attributes(&self, direction: Direction, member: bool) -> bool {
        self.needs_attributes.get(direction, member)
    }

    /// Decides on a flow. Allocates nothing.
    #[must_use]
    pub fn decide(&self, flow: &Flow<'_>) -> Decision<'_> {
        let plain_tcp = !flow.peer.member && flow.protocol == Protocol::Tcp;
        if plain_tcp
            && flow.direction == Direction::Inbound
            && self.authentication(flow.port) == AuthenticationMode::Strict
        {
            return Decision::by_nobody(Some(Reason::InboundPlaintext));
        }
        let found = self
            .index
            .find(flow.direction, flow.protocol, flow.port, &flow.peer);
        let found = found.map(|rank| rank as usize);
        let refused = match found {
            Some(rank) if rank < self.denying => Some(Reason::PolicyDenied),
            _ if self.is_dns(flow) => return Decision::by_nobody(None),
            Some(_) => None,
            None => return Decision::by_nobody(Some(no_rule(flow))),
        };
        Decision {
            refused,
            policy: found.map(|rank| &self.ranked[rank]),
        }
    }

    /// The authorization policies it was made from.
    #[must_use]
    pub fn authorizations(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.authorizations
    }

    /// The cluster's DNS resolvers.
    #[must_use]
    pub fn resolvers(&self) -> &[IpAddr] {
        &self.resolvers
    }

    fn is_dns(&self, flow: &Flow<'_>) -> bool {
        let address = || flow.peer.address.to_canonical();
        flow.direction == Direction::Outbound
            && flow.port == PORT_DNS
            && self.resolvers.binary_search(&address()).is_ok()
    }
}

impl Decision<'_> {
    fn by_nobody(refused: Option<Reason>) -> Self {
        Self {
            refused,
            policy: None,
        }
    }
}

/// DENY comes first, and then the lowest key.
fn rank(policy: &AuthorizationPolicy) -> (bool, &PolicyKey) {
    (policy.action == Action::Allow, &policy.key)
}

/// [`PodPolicy::needs_attributes`], by direction: of a peer outside the mesh, and of a member.
#[derive(Clone, Debug, Default)]
struct NeedsAttributes {
    inbound: [bool; 2],
    outbound: [bool; 2],
}

impl NeedsAttributes {
    fn add(&mut self, direction: Direction, condition: &Condition) {
        let needs = match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        };
        for member in [false, true] {
            needs[usize::from(member)] |= condition.needs_attributes(member);
        }
    }

    fn get(&self, direction: Direction, member: bool) -> bool {
        match direction {
            Direction::Inbound => self.inbound[usize::from(member)],
            Direction::Outbound => self.outbound[usize::from(member)],
        }
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

#[cfg(test)]
mod tests {
    use super::super::{PeerTerm, Rule, Target};
    use super::*;

    fn policy(action: Action, direction: Direction, peer: PeerTerm) -> PodPolicy {
        let authorization = AuthorizationPolicy {
            key: "shop/p".into(),
            target: Target::Namespace,
            direction,
            action,
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
            // Inbound, an ALLOW by any of these is not for peers outside the mesh.
            for (action, of_others) in [(Action::Deny, of_others), (Action::Allow, false)] {
                let policy = policy(action, Direction::Inbound, term.clone());
                let needs = |member| policy.needs_attributes(Direction::Inbound, member);
                let found = (needs(true), needs(false));
                assert_eq!(found, (of_members, of_others), "{action:?} {term:?}");
                assert!(!policy.needs_attributes(Direction::Outbound, false));
            }
        }
    }
}
