//! Connections that stand outside the mesh: what would be decided on each, were it made anew
//! through the mesh, its other end being whom discovery has at its address.

use std::net::SocketAddr;

use super::place::{Route, places_at};
use super::{NO_LABELS, outbound_flow};
use crate::model::{Mesh, ServiceKey};
use crate::policy::{Decision, Direction, Flow, Peer, PodPolicy, Protocol};

/// A TCP connection of a pod, which is not in the mesh's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Whether the pod was called or has called.
    pub direction: Direction,
    /// The pod's own end.
    pub local: SocketAddr,
    /// The other end, as the pod's socket has it.
    pub remote: SocketAddr,
}

/// What `policy`, which is the pod's, decides on a connection. `None` where `mesh` has nobody at
/// the other end's address and a pod outside it can't be told from one that isn't known yet.
#[must_use]
pub fn unproven<'a>(
    mesh: &Mesh,
    policy: &'a PodPolicy,
    connection: &Connection,
    nobody_is_there: bool,
) -> Option<Decision<'a>> {
    match connection.direction {
        Direction::Inbound => inbound(mesh, policy, connection, nobody_is_there),
        Direction::Outbound => outbound(mesh, policy, connection, nobody_is_there),
    }
}

fn inbound<'a>(
    mesh: &Mesh,
    policy: &'a PodPolicy,
    connection: &Connection,
    nobody_is_there: bool,
) -> Option<Decision<'a>> {
    let address = connection.remote.ip().to_canonical();
    let known = mesh.workload_at(address);
    if known.is_none() && !nobody_is_there {
        return None;
    }
    let services: Vec<ServiceKey> = known.map_or_else(Vec::new, |workload| {
        workload.services.keys().cloned().collect()
    });
    Some(policy.decide(&Flow {
        direction: Direction::Inbound,
        peer: Peer {
            address,
            member: known.is_some_and(|workload| workload.enrolled()),
            identity: known.map(|workload| &workload.identity),
            services: &services,
            labels: known.map_or(&NO_LABELS, |workload| &workload.labels),
        },
        port: connection.local.port(),
        protocol: Protocol::Tcp,
    }))
}

/// A service leads to whichever of its endpoints may be called. One without endpoints is no matter
/// of policy: whom the connection was made to is gone from it.
fn outbound<'a>(
    mesh: &Mesh,
    policy: &'a PodPolicy,
    connection: &Connection,
    nobody_is_there: bool,
) -> Option<Decision<'a>> {
    let to = connection.remote;
    let (route, places) = places_at(mesh, to.ip().to_canonical(), to.port());
    if matches!(route, Route::Unknown) && !nobody_is_there {
        return None;
    }
    let mut refused = None;
    for place in &places {
        let member = place.workload.as_ref().is_some_and(|w| w.enrolled());
        let decision = policy.decide(&outbound_flow(place, member, Protocol::Tcp));
        if decision.refused.is_none() {
            return Some(decision);
        }
        refused.get_or_insert(decision);
    }
    Some(refused.unwrap_or(Decision {
        refused: None,
        policy: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::model::{Enrolment, Service, Workload};
    use crate::policy::{Action, AuthorizationPolicy, PeerTerm, Rule, Target};
    use crate::reason::Reason;

    fn workload(name: &str, last: u8, enrolment: Enrolment) -> Workload {
        let identity = Identity::new("cluster.local".parse().unwrap(), "shop", name).unwrap();
        Workload {
            addresses: vec![[10, 0, 0, last].into()],
            enrolment,
            services: [("shop/web".into(), [(80, 8080)].into())].into(),
            ..Workload::new(name, name, identity)
        }
    }

    fn mesh() -> Mesh {
        let mut mesh = Mesh::default();
        mesh.insert_workload(workload("web", 2, Enrolment::Enforce));
        mesh.insert_workload(workload("plain", 3, Enrolment::None));
        mesh.insert_service(Service {
            key: "shop/web".into(),
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            addresses: vec!["10.96.0.1".parse().unwrap()],
            ports: [80].into(),
            traffic: Default::default(),
        });
        mesh
    }

    fn policy(direction: Direction) -> PodPolicy {
        let allow = AuthorizationPolicy {
            key: "shop/allow".into(),
            target: Target::Namespace,
            direction,
            action: Action::Allow,
            rules: vec![Rule {
                peers: vec![PeerTerm {
                    namespace: Some("shop".into()),
                    ..PeerTerm::default()
                }],
                ..Rule::default()
            }],
        };
        PodPolicy::new(vec![allow.into()], Vec::new(), Vec::new())
    }

    fn decide(direction: Direction, remote: &str, nobody: bool) -> Option<Option<Reason>> {
        let connection = Connection {
            direction,
            local: "10.0.0.9:7000".parse().unwrap(),
            remote: remote.parse().unwrap(),
        };
        let policy = policy(direction);
        let decision = unproven(&mesh(), &policy, &connection, nobody);
        decision.map(|decision| decision.refused)
    }

    #[test]
    fn a_members_address_stands_for_its_identity_and_a_service_for_its_endpoints() {
        use Direction::{Inbound, Outbound};
        for (direction, remote, expected) in [
            (Inbound, "10.0.0.2:4000", None),
            (Inbound, "[::ffff:10.0.0.2]:4000", None),
            (Inbound, "10.0.0.3:4000", Some(Reason::InboundPlaintext)),
            (Inbound, "10.0.0.8:4000", Some(Reason::InboundPlaintext)),
            (Outbound, "10.0.0.2:8080", None),
            (
                Outbound,
                "10.0.0.3:8080",
                Some(Reason::DestinationNotEnrolled),
            ),
            (Outbound, "10.0.0.8:8080", Some(Reason::DestinationUnknown)),
            (Outbound, "10.96.0.1:80", None),
            (Outbound, "10.96.0.1:81", None),
        ] {
            let found = decide(direction, remote, true);
            assert_eq!(found, Some(expected), "{direction:?} {remote}");
        }
    }

    #[test]
    fn who_is_not_known_yet_is_not_decided_on() {
        for direction in [Direction::Inbound, Direction::Outbound] {
            assert_eq!(decide(direction, "10.0.0.8:80", false), None);
            assert_eq!(decide(direction, "10.0.0.2:80", false), Some(None));
        }
    }
}
