//! The indexed model against a naive one that scans plain lists.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::Identity;
use mesh_core::model::{Enrolment, Mesh, Resolution, Service, Workload};
use mesh_core::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, Target,
};
use mesh_core::sharing::{default_alone, shared_identities};
use proptest::prelude::*;

/// Few names and addresses, so that operations meet.
const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"];

#[derive(Clone, Debug)]
enum Operation {
    PutWorkload(Workload),
    PutService(Service),
    RemoveWorkload(String),
    RemoveService(String),
    PutPolicy(Arc<AuthorizationPolicy>),
    RemovePolicy(String),
    PutScope(Arc<AuthenticationPolicy>),
    RemoveScope(String),
}

fn key(n: usize) -> String {
    format!("ns/s{n}.ns.svc.cluster.local")
}

/// Every owner has addresses of its own here: an address with two owners
/// at a time is a mistake that the sources refuse.
fn addresses(owner: usize, picked: &[bool]) -> Vec<IpAddr> {
    let text = |i: usize| ADDRESSES[i].parse::<IpAddr>();
    picked
        .iter()
        .enumerate()
        .filter(|(_, on)| **on)
        .map(|(i, _)| match text(i).unwrap() {
            IpAddr::V4(v4) => {
                let [a, b, _, d] = v4.octets();
                IpAddr::from([a, b, u8::try_from(owner).unwrap(), d])
            }
            IpAddr::V6(v6) => {
                let mut octets = v6.octets();
                octets[8] = u8::try_from(owner).unwrap();
                IpAddr::from(octets)
            }
        })
        .collect()
}

fn workload() -> impl Strategy<Value = Workload> {
    (
        0usize..4,
        prop::collection::vec(any::<bool>(), 4),
        any::<bool>(),
        prop::collection::btree_map(
            0usize..3,
            prop::collection::btree_map(1u16..4, 1u16..4, 0..3),
            0..3,
        ),
        0usize..2,
        0usize..2,
    )
        .prop_map(|(n, picked, enrolled, services, account, node)| {
            let account = ["default", "other"][account];
            let identity = Identity::new("td".parse().unwrap(), "ns", account);
            let uid = format!("c//v1/Pod/ns/w{n}");
            Workload {
                node: format!("node-{node}"),
                addresses: addresses(n, &picked),
                enrolment: if enrolled {
                    Enrolment::Enforce
                } else {
                    Enrolment::None
                },
                services: services
                    .into_iter()
                    .map(|(n, ports)| (key(n).into(), ports))
                    .collect(),
                ..Workload::new(uid, format!("w{n}"), identity.unwrap())
            }
        })
}

fn service() -> impl Strategy<Value = Service> {
    (
        0usize..3,
        prop::collection::vec(any::<bool>(), 4),
        prop::collection::btree_set(1u16..4, 0..3),
    )
        .prop_map(|(n, picked, ports)| Service {
            key: key(n).into(),
            name: format!("s{n}"),
            namespace: "ns".to_owned(),
            addresses: addresses(n + 100, &picked),
            ports,
            traffic: Default::default(),
        })
}

fn policy(n: usize, deny: bool) -> Arc<AuthorizationPolicy> {
    Arc::new(AuthorizationPolicy {
        key: format!("ns/p{n}").into(),
        target: Target::Namespace,
        direction: Direction::Inbound,
        action: if deny { Action::Deny } else { Action::Allow },
        rules: Vec::new(),
    })
}

fn scope(n: usize, strict: bool) -> Arc<AuthenticationPolicy> {
    Arc::new(AuthenticationPolicy {
        key: format!("ns/p{n}").into(),
        target: Target::Namespace,
        mode: strict.then_some(AuthenticationMode::Strict),
        ports: BTreeMap::new(),
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => workload().prop_map(Operation::PutWorkload),
        2 => service().prop_map(Operation::PutService),
        1 => (0usize..4).prop_map(|n| Operation::RemoveWorkload(format!("c//v1/Pod/ns/w{n}"))),
        1 => (0usize..3).prop_map(|n| Operation::RemoveService(key(n))),
        1 => (0usize..3, any::<bool>()).prop_map(|(n, deny)| Operation::PutPolicy(policy(n, deny))),
        1 => (0usize..3).prop_map(|n| Operation::RemovePolicy(format!("ns/p{n}"))),
        1 => (0usize..3, any::<bool>()).prop_map(|(n, strict)| Operation::PutScope(scope(n, strict))),
        1 => (0usize..3).prop_map(|n| Operation::RemoveScope(format!("ns/p{n}"))),
    ]
}

#[derive(Default)]
struct Naive {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, Service>,
    policies: BTreeMap<String, Arc<AuthorizationPolicy>>,
    scopes: BTreeMap<String, Arc<AuthenticationPolicy>>,
}

impl Naive {
    fn apply(&mut self, operation: Operation) -> bool {
        match operation {
            Operation::PutWorkload(w) => {
                self.workloads.insert(w.uid.to_string(), w.clone()) != Some(w)
            }
            Operation::PutService(s) => {
                self.services.insert(s.key.to_string(), s.clone()) != Some(s)
            }
            Operation::RemoveWorkload(uid) => self.workloads.remove(&uid).is_some(),
            Operation::RemoveService(key) => self.services.remove(&key).is_some(),
            Operation::PutPolicy(p) => {
                self.policies.insert(p.key.to_string(), p.clone()) != Some(p)
            }
            Operation::RemovePolicy(key) => self.policies.remove(&key).is_some(),
            Operation::PutScope(p) => self.scopes.insert(p.key.to_string(), p.clone()) != Some(p),
            Operation::RemoveScope(key) => self.scopes.remove(&key).is_some(),
        }
    }

    /// `(what it is, the endpoints as workload, address, port)`.
    fn resolve(&self, address: IpAddr, port: u16) -> (String, Vec<(String, IpAddr, u16)>) {
        if let Some(w) = self
            .workloads
            .values()
            .find(|w| w.addresses.contains(&address))
        {
            return ("workload".into(), vec![(w.uid.to_string(), address, port)]);
        }
        let Some(s) = self
            .services
            .values()
            .find(|s| s.addresses.contains(&address))
        else {
            return ("unknown".into(), vec![]);
        };
        let mut found = vec![];
        for w in self.workloads.values() {
            let Some(target) = w.services.get(&s.key).and_then(|ports| ports.get(&port)) else {
                continue;
            };
            let family = w
                .addresses
                .iter()
                .find(|a| a.is_ipv4() == address.is_ipv4());
            if let Some(a) = family.or(w.addresses.first()) {
                found.push((w.uid.to_string(), *a, *target));
            }
        }
        (s.key.to_string(), found)
    }
}

fn described(resolution: Resolution) -> (String, Vec<(String, IpAddr, u16)>) {
    match resolution {
        Resolution::Workload(e) => (
            "workload".into(),
            vec![(e.workload.uid.to_string(), e.address, e.port)],
        ),
        Resolution::Service(key, endpoints) => (
            key.to_string(),
            endpoints
                .into_iter()
                .map(|e| (e.workload.uid.to_string(), e.address, e.port))
                .collect(),
        ),
        Resolution::Unknown => ("unknown".into(), vec![]),
    }
}

proptest! {
    #[test]
    fn the_model_resolves_as_the_naive_one_does(operations in prop::collection::vec(operation(), 1..40)) {
        let (mut mesh, mut naive) = (Mesh::default(), Naive::default());
        for operation in operations {
            let changed = match operation.clone() {
                Operation::PutWorkload(w) => mesh.insert_workload(w),
                Operation::PutService(s) => mesh.insert_service(s),
                Operation::RemoveWorkload(uid) => mesh.remove_workload(&uid).is_some(),
                Operation::RemoveService(key) => mesh.remove_service(&key).is_some(),
                Operation::PutPolicy(p) => mesh.insert_authorization((*p).clone()),
                Operation::RemovePolicy(key) => mesh.remove_authorization(&key).is_some(),
                Operation::PutScope(p) => mesh.insert_authentication((*p).clone()),
                Operation::RemoveScope(key) => mesh.remove_authentication(&key).is_some(),
            };
            prop_assert_eq!(changed, naive.apply(operation));
        }
        for owner in (0..4).chain(100..103) {
            for address in addresses(owner, &[true; 4]) {
                for port in 1..4 {
                    prop_assert_eq!(
                        described(mesh.resolve(address, port)),
                        naive.resolve(address, port)
                    );
                }
            }
        }
        let all: Vec<_> = mesh.workloads().map(|w| (**w).clone()).collect();
        for node in ["node-0", "node-1", "node-2"] {
            let uids = mesh.on_node(node).map(|w| w.uid.clone());
            let naive = naive.workloads.values().filter(|w| w.node == node);
            prop_assert!(uids.eq(naive.map(|w| w.uid.clone())), "{}", node);
        }
        prop_assert_eq!(all, naive.workloads.into_values().collect::<Vec<_>>());
        let policies: Vec<_> = mesh.authorizations().cloned().collect();
        prop_assert_eq!(policies, naive.policies.into_values().collect::<Vec<_>>());
        let scopes: Vec<_> = mesh.authentications().cloned().collect();
        prop_assert_eq!(scopes, naive.scopes.into_values().collect::<Vec<_>>());
    }

    #[test]
    fn namespaces_are_told_of_whose_pods_all_run_as_default(
        workloads in prop::collection::vec(workload(), 0..5),
    ) {
        let mut mesh = Mesh::default();
        for workload in workloads {
            mesh.insert_workload(workload);
        }
        let found = default_alone(&mesh);
        let names: BTreeSet<_> = mesh.workloads().map(|w| w.identity.namespace()).collect();
        for namespace in names {
            let enrolled = mesh.workloads().filter(|w| w.enrolled());
            let own: Vec<_> = enrolled.filter(|w| w.identity.namespace() == namespace).collect();
            let alone = own.iter().all(|w| w.identity.service_account() == "default");
            let told = (alone && own.len() > 1).then_some(own.len());
            prop_assert_eq!(found.get(namespace).copied(), told);
        }
    }

    #[test]
    fn an_identity_is_shared_when_two_of_its_services_are_not_linked_by_pods(
        workloads in prop::collection::vec(workload(), 0..5),
    ) {
        let mut mesh = Mesh::default();
        for workload in workloads {
            mesh.insert_workload(workload);
        }
        let shared = shared_identities(&mesh);
        let accounts: BTreeSet<_> = mesh.workloads().map(|w| w.identity.clone()).collect();
        for identity in accounts {
            let own: Vec<_> = mesh.workloads().filter(|w| w.identity == identity).collect();
            let all: BTreeSet<_> = own.iter().flat_map(|w| w.services.keys()).collect();
            // Spread from one service over common pods until nothing is added.
            let mut reached: BTreeSet<_> = all.iter().take(1).copied().collect();
            for _ in 0..all.len() {
                for w in &own {
                    if w.services.keys().any(|k| reached.contains(k)) {
                        reached.extend(w.services.keys());
                    }
                }
            }
            prop_assert_eq!(shared.contains_key(&identity), reached != all);
        }
    }
}
