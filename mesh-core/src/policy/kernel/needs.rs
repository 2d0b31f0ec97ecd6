//! What of the mesh a pod's policy in the kernel is made from: without it the kernel would let
//! through, or refuse, something else.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::super::clause::{Clause, Condition, clauses};
use super::super::{Action, AuthorizationPolicy, Direction, PortTerm, Protocol, namespace_of};

/// A part of the mesh. A service always comes with all its workloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Need {
    /// All of it.
    Mesh,
    /// The workloads and services of a namespace.
    Namespace(Arc<str>),
    /// The workloads with an address in this block, and the services in front of them.
    Block(IpNet),
    /// The services with a virtual address in this block.
    Virtual(IpNet),
    /// The services with this port.
    Port(u16),
    /// The services that lead to this port from another.
    Target(u16),
}

/// What of the mesh is needed for one policy, or for all that select a pod together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    tcp: BTreeSet<Need>,
    udp_out: Udp,
    udp_in: Udp,
}

/// One direction of UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Udp {
    /// Something is allowed: without that, denials say nothing.
    allows: bool,
    allow: BTreeSet<Need>,
    deny: BTreeSet<Need>,
}

impl Needs {
    /// Of one policy.
    #[must_use]
    pub fn of(policy: &AuthorizationPolicy) -> Self {
        let mut needs = Self::default();
        for Clause { condition, ports } in clauses(policy) {
            for port in ports {
                needs.add(policy, &condition, port);
            }
        }
        needs
    }

    /// Adds those of another policy for the same pod.
    pub fn merge(&mut self, other: &Self) {
        self.tcp.extend(other.tcp.iter().cloned());
        self.udp_out.merge(&other.udp_out);
        self.udp_in.merge(&other.udp_in);
    }

    /// The parts of the mesh.
    pub fn parts(&self) -> impl Iterator<Item = &Need> {
        let udp = [&self.udp_out, &self.udp_in];
        let udp = udp.into_iter().filter(|udp| udp.allows);
        let udp = udp.flat_map(|udp| udp.allow.iter().chain(&udp.deny));
        self.tcp.iter().chain(udp)
    }

    fn add(&mut self, policy: &AuthorizationPolicy, condition: &Condition, port: PortTerm) {
        let (direction, action) = (policy.direction, policy.action);
        let by_address = condition.by_address_alone();
        match (port.protocol, direction, action) {
            (Protocol::Tcp, Direction::Outbound, Action::Deny) if by_address => {
                // The block's own denial needs nobody. A virtual address in it is denied only
                // where all endpoints behind it are.
                self.tcp.extend(match (condition.cidr, port.port) {
                    (Some(cidr), _) => Some(Need::Virtual(cidr)),
                    (None, Some(port)) => Some(Need::Port(port)),
                    (None, None) => None,
                });
            }
            (Protocol::Tcp, Direction::Outbound, Action::Deny) => {
                self.tcp.insert(place(condition));
            }
            // The workers' part; and nobody proves anything in UDP.
            (Protocol::Tcp, ..) => {}
            (Protocol::Udp, ..) if condition.member => {}
            (Protocol::Udp, direction, action) => {
                let udp = match direction {
                    Direction::Outbound => &mut self.udp_out,
                    Direction::Inbound => &mut self.udp_in,
                };
                match action {
                    Action::Allow => {
                        udp.allows = true;
                        udp.allow.extend((!by_address).then(|| place(condition)));
                    }
                    Action::Deny if !by_address => {
                        udp.deny.insert(place(condition));
                    }
                    // Nobody comes in from a service.
                    Action::Deny if direction == Direction::Inbound => {}
                    // What is denied of an endpoint is denied of the services in front of it, at
                    // whatever port they have. At the same port they are denied anyway.
                    Action::Deny => udp.deny.extend(match (condition.cidr, port.port) {
                        (Some(cidr), _) => Some(Need::Block(cidr)),
                        (None, Some(port)) => Some(Need::Target(port)),
                        (None, None) => None,
                    }),
                }
            }
        }
    }
}

impl Udp {
    fn merge(&mut self, other: &Self) {
        self.allows |= other.allows;
        self.allow.extend(other.allow.iter().cloned());
        self.deny.extend(other.deny.iter().cloned());
    }
}

/// Where the peers are that a condition can hold for. Services select pods of their own
/// namespace.
fn place(condition: &Condition) -> Need {
    let identity = condition.identity.as_ref();
    let namespace = identity
        .map(|identity| identity.namespace().into())
        .or_else(|| condition.namespace.clone())
        .or_else(|| Some(namespace_of(condition.service.as_ref()?).into()));
    match (namespace, condition.cidr) {
        (Some(namespace), _) => Need::Namespace(namespace),
        (None, Some(cidr)) => Need::Block(cidr),
        (None, None) => Need::Mesh,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{PeerTerm, Rule, Target};

    const TCP: Protocol = Protocol::Tcp;
    const UDP: Protocol = Protocol::Udp;

    fn policy(
        direction: Direction,
        action: Action,
        peer: Option<PeerTerm>,
        ports: &[(Protocol, Option<u16>)],
    ) -> Needs {
        let ports = ports
            .iter()
            .map(|&(protocol, port)| PortTerm { port, protocol });
        Needs::of(&AuthorizationPolicy {
            key: "shop/p".into(),
            target: Target::Namespace,
            direction,
            action,
            rules: vec![Rule {
                peers: peer.into_iter().collect(),
                ports: ports.collect(),
            }],
        })
    }

    fn cidr() -> IpNet {
        "10.1.0.0/16".parse().unwrap()
    }

    fn block() -> Option<PeerTerm> {
        Some(PeerTerm {
            cidr: Some(cidr()),
            ..PeerTerm::default()
        })
    }

    fn data() -> Option<PeerTerm> {
        Some(PeerTerm {
            namespace: Some("data".into()),
            ..PeerTerm::default()
        })
    }

    fn parts(needs: &Needs) -> Vec<Need> {
        needs.parts().cloned().collect()
    }

    #[test]
    fn tcp_asks_for_what_is_denied_and_for_services_that_are_not() {
        use Action::{Allow, Deny};
        use Direction::{Inbound, Outbound};
        let tcp =
            |direction, action, peer, port| parts(&policy(direction, action, peer, &[(TCP, port)]));
        let namespace = Need::Namespace("data".into());
        assert_eq!(tcp(Outbound, Deny, data(), Some(80)), [namespace]);
        assert_eq!(tcp(Outbound, Deny, block(), None), [Need::Virtual(cidr())]);
        assert_eq!(tcp(Outbound, Deny, None, Some(22)), [Need::Port(22)]);
        for nothing in [
            tcp(Outbound, Deny, None, None),
            tcp(Outbound, Allow, data(), None),
            tcp(Inbound, Deny, data(), None),
        ] {
            assert_eq!(nothing, []);
        }
    }

    #[test]
    fn udp_that_is_denied_matters_only_where_some_is_allowed() {
        use Action::{Allow, Deny};
        use Direction::{Inbound, Outbound};
        let udp = |direction, action, peer, port| policy(direction, action, peer, &[(UDP, port)]);
        let denials = [
            (data(), Some(9), vec![Need::Namespace("data".into())]),
            (block(), None, vec![Need::Block(cidr())]),
            (None, Some(9), vec![Need::Target(9)]),
            (None, None, vec![]),
        ];
        for (peer, port, expected) in denials {
            let mut needs = udp(Outbound, Deny, peer.clone(), port);
            needs.merge(&udp(Inbound, Allow, block(), Some(53)));
            assert_eq!(parts(&needs), [], "{peer:?}");
            needs.merge(&udp(Outbound, Allow, block(), Some(53)));
            assert_eq!(parts(&needs), expected, "{peer:?}");
        }
        // Of members: nobody proves anything in UDP.
        assert_eq!(parts(&udp(Inbound, Allow, data(), Some(53))), []);
        let placed = PeerTerm {
            namespace: Some("data".into()),
            ..block().unwrap()
        };
        let needs = udp(Inbound, Allow, Some(placed), Some(53));
        assert_eq!(parts(&needs), [Need::Namespace("data".into())]);
    }
}
