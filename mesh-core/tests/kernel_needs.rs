//! A node that holds the part of the mesh that a policy needs tells the kernel what one that holds
//! all of it would.

mod generated;
mod meshes;
mod universe;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::model::{Mesh, Resolution, ServiceKey, Workload};
use mesh_core::policy::kernel::{KernelClass, KernelPolicy, KernelVerdict, Need, Needs};
use mesh_core::policy::{
    Action, AuthorizationPolicy, Direction, PeerTerm, PodPolicy, PortTerm, Protocol, Rule, Target,
};
use meshes::{PORTS, addresses, mesh};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn namespace_of(service: &ServiceKey) -> &str {
    service.split('/').next().unwrap()
}

/// Services select pods of their own namespace.
fn placed(mesh: &Mesh) -> Mesh {
    let mut placed = mesh.clone();
    for workload in mesh.workloads() {
        let mut workload = Workload::clone(workload);
        let namespace = workload.identity.namespace().to_owned();
        workload
            .services
            .retain(|key, _| namespace_of(key) == namespace);
        placed.insert_workload(workload);
    }
    placed
}

fn is_own(workload: &Workload, own: &[IpAddr]) -> bool {
    let mut addresses = workload.addresses.iter();
    addresses.any(|a| own.iter().any(|own| own.to_canonical() == *a))
}

/// What a node holds: the pod itself, what it needs, and of every service all workloads.
fn part(mesh: &Mesh, needs: &Needs, own: &[IpAddr]) -> Mesh {
    let mut keys: BTreeSet<ServiceKey> = BTreeSet::new();
    let mut uids = BTreeSet::new();
    for workload in mesh.workloads() {
        if is_own(workload, own) {
            uids.insert(workload.uid.clone());
            keys.extend(workload.services.keys().cloned());
        }
        for need in needs.parts() {
            let here = match need {
                Need::Mesh => true,
                Need::Namespace(namespace) => workload.identity.namespace() == &**namespace,
                Need::Block(block) => workload.addresses.iter().any(|a| block.contains(a)),
                Need::Target(_) | Need::Virtual(_) | Need::Port(_) => false,
            };
            if here {
                uids.insert(workload.uid.clone());
                keys.extend(workload.services.keys().cloned());
            }
            if let Need::Target(port) = need {
                let to_it = workload.translations().filter(|(_, target)| target == port);
                keys.extend(to_it.map(|(key, _)| key.clone()));
            }
        }
    }
    for service in mesh.services() {
        let needed = needs.parts().any(|need| match need {
            Need::Mesh => true,
            Need::Namespace(namespace) => namespace_of(&service.key) == &**namespace,
            Need::Virtual(block) => service.addresses.iter().any(|a| block.contains(a)),
            // These services have no ports of their own: those of their workloads count.
            Need::Port(port) => {
                let mut members = mesh.members(&service.key);
                members.any(|w| w.services[&service.key].contains_key(port))
            }
            Need::Block(_) | Need::Target(_) => false,
        });
        if needed {
            keys.insert(service.key.clone());
        }
    }
    for key in &keys {
        uids.extend(mesh.members(key).map(|workload| workload.uid.clone()));
    }
    let mut part = Mesh::default();
    for workload in mesh.workloads().filter(|w| uids.contains(&w.uid)) {
        part.insert_workload(workload.clone());
    }
    for service in mesh.services().filter(|s| keys.contains(&s.key)) {
        part.insert_service(service.clone());
    }
    part
}

/// UDP to anybody, but not at this port: chance says that too seldom.
fn udp_but(port: u16) -> [Arc<AuthorizationPolicy>; 2] {
    let policy = |name: &str, action, blocks: &[&str], port| {
        let peer = |block: &&str| PeerTerm {
            cidr: Some(block.parse().unwrap()),
            ..PeerTerm::default()
        };
        let protocol = Protocol::Udp;
        Arc::new(AuthorizationPolicy {
            key: format!("a/{name}").into(),
            target: Target::Mesh,
            direction: Direction::Outbound,
            action,
            rules: vec![Rule {
                peers: blocks.iter().map(peer).collect(),
                ports: [PortTerm { port, protocol }].into(),
            }],
        })
    };
    [
        policy("udp", Action::Allow, &["0.0.0.0/0", "::/0"], None),
        policy("udp-but", Action::Deny, &[], Some(port)),
    ]
}

#[test]
fn what_a_policy_needs_is_enough() {
    let strategy = (
        generated::policies(6),
        prop::option::of(generated::port()),
        mesh(),
        prop::collection::vec(generated::address(), 0..2),
    );
    let met: RefCell<BTreeMap<&str, u32>> = RefCell::default();
    let config = Config {
        cases: 8_000,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&strategy, |(mut policies, but, mesh, mut own)| {
        policies.extend(but.into_iter().flat_map(udp_but));
        let mesh = placed(&mesh);
        own.retain(|address| mesh.service_at(address.to_canonical()).is_none());
        let mut needs = Needs::default();
        for policy in &policies {
            needs.merge(&Needs::of(policy));
        }
        let part = part(&mesh, &needs, &own);
        let policy = PodPolicy::new(policies, Vec::new(), Vec::new());
        let [of_all, of_part] = [&mesh, &part].map(|mesh| KernelPolicy::new(&policy, &own, mesh));
        for (address, port) in addresses().flat_map(|a| PORTS.map(|port| (a, port))) {
            let look = |kernel: &KernelPolicy, class| kernel.look_up(class, address, port);
            for class in [KernelClass::UdpOut, KernelClass::UdpIn] {
                let [all, part] =
                    [&of_all, &of_part].map(|k| look(k, class) == Some(KernelVerdict::Allow));
                prop_assert_eq!(part, all, "{:?} {} {}", class, address, port);
            }
            // What is not denied here the worker decides, and lets nothing through to a service
            // with nobody behind it.
            let resolution = mesh.resolve(address.to_canonical(), port);
            let nobody = matches!(&resolution, Resolution::Service(_, behind) if behind.is_empty());
            let [all, part] = [&of_all, &of_part]
                .map(|k| look(k, KernelClass::TcpOut) == Some(KernelVerdict::Deny));
            prop_assert!(!part || all || nobody, "TCP {} {}", address, port);
            *met.borrow_mut().entry("denied").or_default() += u32::from(part);
        }
        let mut met = met.borrow_mut();
        let mut meet = |what, is| *met.entry(what).or_default() += u32::from(is);
        let less = part.workloads().count() < mesh.workloads().count();
        meet("less than all", less);
        let mut parts = needs.parts();
        meet(
            "by target",
            parts.any(|need| matches!(need, Need::Target(_))),
        );
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let met = met.into_inner();
    for (what, least) in [
        ("denied", 10_000),
        ("less than all", 2_000),
        ("by target", 2_000),
    ] {
        assert!(met[what] >= least, "{what} of {met:?}");
    }
}
