//! A mesh of any size: which pod is where follows from its number.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use mesh_control::registry::{service_key, workload_uid};
use mesh_core::identity::{Identity, IdentityError};
use mesh_core::model::{Enrolment, Locality, Mesh, Service, Workload};
use mesh_core::policy::{Action, AuthorizationPolicy, Direction, PeerTerm, Rule, Target};
use serde::{Deserialize, Serialize};

/// Trust domain of the mesh.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
/// Label of a pod with the time of its last change.
pub(crate) const CHANGED: &str = "changed-ns";

const NAMESPACES: usize = 100;
const ZONES: usize = 3;
const FIRST_POD: u32 = u32::from_be_bytes([10, 0, 0, 1]);
const FIRST_SERVICE: u32 = u32::from_be_bytes([172, 16, 0, 1]);

/// How large it is.
#[derive(Args, Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Size {
    /// Nodes
    #[arg(long, default_value_t = 1_000)]
    pub(crate) nodes: usize,
    /// Pods, each endpoint of one service
    #[arg(long, default_value_t = 100_000)]
    pub(crate) workloads: usize,
    /// Services
    #[arg(long, default_value_t = 10_000)]
    pub(crate) services: usize,
    /// Services that the pods of a node talk to
    #[arg(long, default_value_t = 50)]
    pub(crate) talks_to: usize,
}

impl Size {
    /// Name of a node.
    pub(crate) fn node(n: usize) -> String {
        format!("node-{n}")
    }

    /// All of the mesh.
    pub(crate) fn mesh(self) -> Result<Mesh, IdentityError> {
        let mut mesh = Mesh::default();
        for n in 0..self.services {
            mesh.insert_service(service(n));
        }
        for n in 0..self.workloads {
            mesh.insert_workload(self.workload(n, 0)?);
        }
        for n in 0..NAMESPACES {
            mesh.insert_authorization(policy(n));
        }
        Ok(mesh)
    }

    /// A pod that has changed at that time, in nanoseconds since the epoch.
    pub(crate) fn workload(self, n: usize, changed_ns: u64) -> Result<Workload, IdentityError> {
        let service = n % self.services;
        let name = format!("s{service}-{n}");
        let domain = TRUST_DOMAIN.parse()?;
        let account = format!("s{service}");
        let identity = Identity::new(domain, &namespace(service), &account)?;
        let labels = [
            ("app".to_owned(), account),
            (CHANGED.to_owned(), changed_ns.to_string()),
        ];
        let node = self.node_of(n);
        Ok(Workload {
            node: Self::node(node),
            addresses: vec![address(FIRST_POD, n)],
            enrolment: Enrolment::Enforce,
            labels: labels.into(),
            locality: Locality {
                region: "region".to_owned(),
                zone: format!("zone-{}", node % ZONES),
            },
            services: [(key(service).into(), [(80, 8080)].into())].into(),
            ..Workload::new(uid(self, n), name, identity)
        })
    }

    /// A service's endpoints are spread over the nodes.
    fn node_of(self, workload: usize) -> usize {
        (workload + workload / self.services * 7) % self.nodes
    }

    /// Addresses of the services that the pods of a node talk to.
    pub(crate) fn asked_by(self, node: usize) -> Vec<IpAddr> {
        let services = self.talks_to(node).into_iter();
        services.map(|n| address(FIRST_SERVICE, n)).collect()
    }

    /// Names of what a node is to hold: its pods' services and those that they talk to, each with
    /// all its endpoints, which its own pods are among.
    pub(crate) fn names_of(self, node: usize) -> Vec<String> {
        let own = (0..self.workloads).filter(|n| self.node_of(*n) == node);
        let services = own.map(|n| n % self.services);
        let services: BTreeSet<usize> = services.chain(self.talks_to(node)).collect();
        let endpoints = services.iter().flat_map(|service| {
            let all = (*service..self.workloads).step_by(self.services);
            all.map(|n| uid(self, n))
        });
        let services = services.iter().map(|n| key(*n));
        services.chain(endpoints).collect()
    }

    fn talks_to(self, node: usize) -> Vec<usize> {
        let first = node * self.talks_to;
        (first..first + self.talks_to.min(self.services))
            .map(|n| n % self.services)
            .collect()
    }
}

/// Id of a pod.
pub(crate) fn uid(size: Size, workload: usize) -> String {
    let service = workload % size.services;
    workload_uid(&namespace(service), &format!("s{service}-{workload}"))
}

fn namespace(service: usize) -> String {
    format!("ns{}", service % NAMESPACES)
}

fn key(service: usize) -> String {
    service_key(&namespace(service), &format!("s{service}"))
}

fn address(first: u32, n: usize) -> IpAddr {
    let n = u32::try_from(n).expect("fewer than 2^20 of them");
    Ipv4Addr::from(first + n).into()
}

fn service(n: usize) -> Service {
    Service {
        key: key(n).into(),
        name: format!("s{n}"),
        namespace: namespace(n),
        addresses: vec![address(FIRST_SERVICE, n)],
        ports: [80].into(),
        traffic: Default::default(),
    }
}

/// Whoever is in the mesh and of the next namespace may.
fn policy(n: usize) -> AuthorizationPolicy {
    let peer = PeerTerm {
        namespace: Some(namespace(n + 1).into()),
        ..PeerTerm::default()
    };
    AuthorizationPolicy {
        key: format!("{}/allow", namespace(n)).into(),
        target: Target::Namespace,
        direction: Direction::Inbound,
        action: Action::Allow,
        rules: vec![Rule {
            peers: vec![peer],
            ..Rule::default()
        }],
    }
}
