//! A small mesh that never stands still: few names, few addresses, so that they are used again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fastrand::Rng;
use mesh_control::registry::{service_key, workload_uid};
use mesh_core::identity::Identity;
use mesh_core::model::{Enrolment, Locality, Mesh, Service, Workload};
use mesh_core::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction,
    MESH_NAMESPACE, PeerTerm, PortTerm, Protocol, Rule, Target,
};

/// Nodes, by name.
pub(crate) const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// Ports that are asked for and that policies speak of.
pub(crate) const PORTS: [u16; 2] = [80, 8080];
/// A policy that names this port says something that an old agent can't read.
pub(crate) const NEWS_PORT: u16 = 4242;

const NAMESPACES: [&str; 2] = ["shop", "bank"];
const ACCOUNTS: [&str; 2] = ["x", "y"];
const PODS: usize = 8;
const SERVICES: usize = 3;
const POLICIES: usize = 6;
const SCOPES: usize = 3;
const POD_ADDRESSES: u8 = 10;
const SERVICE_ADDRESSES: u8 = 4;

/// Every address that a pod or a service ever has, and one that nobody has.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let pods = (1..=POD_ADDRESSES).map(|n| IpAddr::from([10, 0, 0, n]));
    let services = (1..=SERVICE_ADDRESSES).map(|n| IpAddr::from([10, 96, 0, n]));
    let nobody = IpAddr::from([192, 0, 2, 1]);
    pods.chain(services).chain([nobody]).collect()
}

/// The next state: one to four objects are others, all of it at once.
pub(crate) fn changed(mesh: &Mesh, rng: &mut Rng) -> Mesh {
    let mut mesh = mesh.clone();
    for _ in 0..rng.usize(1..=4) {
        match rng.u8(0..10) {
            0..4 => put_pod(&mut mesh, rng),
            4 => drop(mesh.remove_workload(&uid(rng.usize(..PODS)))),
            5 => swap_addresses(&mut mesh, rng),
            6 => service(&mut mesh, rng),
            7 | 8 => authorization(&mut mesh, rng),
            _ => authentication(&mut mesh, rng),
        }
    }
    mesh
}

fn namespace(n: usize) -> &'static str {
    NAMESPACES[n % NAMESPACES.len()]
}

fn uid(pod: usize) -> String {
    workload_uid(namespace(pod), &format!("p{pod}"))
}

/// The first is the cluster's DNS.
fn key(service: usize) -> String {
    match service {
        0 => service_key("kube-system", "kube-dns"),
        n => service_key(namespace(n), &format!("s{n}")),
    }
}

fn identity(rng: &mut Rng, namespace: &str) -> Identity {
    let account = ACCOUNTS[rng.usize(..ACCOUNTS.len())];
    let domain = "cluster.local".parse().expect("a trust domain");
    Identity::new(domain, namespace, account).expect("an identity")
}

fn app(rng: &mut Rng) -> mesh_core::policy::Labels {
    [("app".to_owned(), rng.u8(..2).to_string())].into()
}

fn put_pod(mesh: &mut Mesh, rng: &mut Rng) {
    let n = rng.usize(..PODS);
    let old = mesh.workload(&uid(n)).cloned();
    let taken: BTreeSet<IpAddr> = mesh
        .workloads()
        .filter(|w| *w.uid != *uid(n))
        .flat_map(|w| w.addresses.clone())
        .collect();
    let free: Vec<IpAddr> = addresses()
        .into_iter()
        .take(POD_ADDRESSES.into())
        .filter(|address| !taken.contains(address))
        .collect();
    let node = rng.usize(..NODES.len());
    let services = (0..SERVICES).filter(|_| rng.u8(..3) == 0);
    let services = services.map(|s| (key(s).into(), [(80, 8080)].into()));
    let services = services.collect();
    let fresh = Workload {
        node: NODES[node].to_owned(),
        addresses: vec![free[rng.usize(..free.len())]],
        enrolment: [Enrolment::None, Enrolment::Audit, Enrolment::Enforce][rng.usize(..3)],
        labels: app(rng),
        locality: Locality {
            region: "region".to_owned(),
            zone: format!("zone-{node}"),
        },
        services,
        ..Workload::new(uid(n), format!("p{n}"), identity(rng, namespace(n)))
    };
    let pod = match old {
        // What a running pod can change.
        Some(old) if rng.bool() => Workload {
            labels: fresh.labels,
            enrolment: fresh.enrolment,
            services: fresh.services,
            ..Workload::clone(&old)
        },
        _ => fresh,
    };
    mesh.insert_workload(pod);
}

/// Two pods are each where the other was: who sees half of it takes one for the other.
fn swap_addresses(mesh: &mut Mesh, rng: &mut Rng) {
    let pods: Vec<_> = mesh.workloads().cloned().collect();
    if pods.len() < 2 {
        return;
    }
    let (one, other) = (rng.usize(..pods.len()), rng.usize(..pods.len()));
    let with = |pod: &Workload, addresses: &[IpAddr]| Workload {
        addresses: addresses.to_vec(),
        ..pod.clone()
    };
    let swapped = [
        with(&pods[one], &pods[other].addresses),
        with(&pods[other], &pods[one].addresses),
    ];
    if one != other {
        for pod in &swapped {
            mesh.remove_workload(&pod.uid);
        }
        for pod in swapped {
            mesh.insert_workload(pod);
        }
    }
}

fn service(mesh: &mut Mesh, rng: &mut Rng) {
    let n = rng.usize(..SERVICES);
    let key = key(n);
    if mesh.remove_service(&key).is_some() && rng.u8(..3) == 0 {
        return;
    }
    let address = IpAddr::from([10, 96, 0, rng.u8(1..=SERVICE_ADDRESSES)]);
    if mesh.service_at(address).is_some() {
        return;
    }
    let (namespace, host) = key.split_once('/').expect("a key");
    let name = host.split('.').next().unwrap_or_default();
    mesh.insert_service(Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        addresses: vec![address],
        ports: [80].into(),
        traffic: Default::default(),
        key: key.into(),
    });
}

fn policy_key(n: usize, kind: char) -> String {
    match n % 3 {
        2 => format!("{MESH_NAMESPACE}/{kind}{n}"),
        n_in => format!("{}/{kind}{n}", namespace(n_in)),
    }
}

fn target(rng: &mut Rng, key: &str) -> Target {
    let mesh = key.starts_with(MESH_NAMESPACE);
    match rng.u8(..3) {
        0 if mesh => Target::Mesh,
        0 => Target::Namespace,
        1 if !mesh => Target::Service(self::key(1 + rng.usize(..SERVICES - 1)).into()),
        _ => Target::Labels(app(rng)),
    }
}

fn peer(rng: &mut Rng) -> PeerTerm {
    let namespace = NAMESPACES[rng.usize(..2)];
    let empty = PeerTerm::default();
    match rng.u8(..5) {
        0 => PeerTerm {
            identity: Some(identity(rng, namespace)),
            ..empty
        },
        1 => PeerTerm {
            namespace: Some(namespace.into()),
            ..empty
        },
        2 => PeerTerm {
            service: Some(key(rng.usize(..SERVICES)).into()),
            ..empty
        },
        3 => PeerTerm {
            namespace: Some(namespace.into()),
            labels: app(rng),
            ..empty
        },
        _ => PeerTerm {
            cidr: Some("10.0.0.0/29".parse().expect("a block")),
            ..empty
        },
    }
}

fn port(port: u16) -> PortTerm {
    PortTerm {
        port: Some(port),
        protocol: Protocol::Tcp,
    }
}

fn authorization(mesh: &mut Mesh, rng: &mut Rng) {
    let n = rng.usize(..POLICIES);
    let key = policy_key(n, 'a');
    if mesh.remove_authorization(&key).is_some() && rng.u8(..4) == 0 {
        return;
    }
    let peers = (0..rng.usize(..3)).map(|_| peer(rng)).collect();
    let mut ports = BTreeSet::new();
    if rng.bool() {
        ports.insert(port(PORTS[rng.usize(..2)]));
    }
    // Beside another port it changes nothing that is asked for.
    if rng.u8(..5) == 0 && !ports.is_empty() {
        ports.insert(port(NEWS_PORT));
    }
    mesh.insert_authorization(AuthorizationPolicy {
        target: target(rng, &key),
        key: key.into(),
        direction: [Direction::Inbound, Direction::Outbound][rng.usize(..2)],
        // Without any ALLOW all is refused anyway.
        action: [Action::Allow, Action::Allow, Action::Deny][rng.usize(..3)],
        rules: vec![Rule { peers, ports }],
    });
}

fn authentication(mesh: &mut Mesh, rng: &mut Rng) {
    let n = rng.usize(..SCOPES);
    let key = policy_key(n, 'm');
    if mesh.remove_authentication(&key).is_some() && rng.u8(..4) == 0 {
        return;
    }
    let mode = |rng: &mut Rng| {
        [AuthenticationMode::Strict, AuthenticationMode::Permissive][rng.usize(..2)]
    };
    let target = target(rng, &key);
    let whole = mode(rng);
    let mut ports = std::collections::BTreeMap::new();
    if !matches!(target, Target::Mesh | Target::Namespace) {
        ports.insert(8080, mode(rng));
        if rng.u8(..4) == 0 {
            ports.insert(NEWS_PORT, AuthenticationMode::Strict);
        }
    }
    mesh.insert_authentication(AuthenticationPolicy {
        key: key.into(),
        target,
        mode: Some(whole),
        ports,
    });
}
