//! What the kernel is told of a policy, against what the worker would decide.

mod generated;
mod meshes;
mod universe;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mesh_core::model::{Mesh, Resolution, Workload};
use mesh_core::policy::kernel::{
    KernelClass, KernelPolicy, KernelVerdict, MAX_PREFIXES, MAX_VERDICTS,
};
use mesh_core::policy::{
    Action, AuthorizationPolicy, Direction, Flow, Labels, Peer, PeerTerm, PodPolicy, PortTerm,
    Protocol, Rule, Target,
};
use mesh_core::reason::Reason;
use meshes::{PORTS, addresses, mesh};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A decision on a flow to or from a workload that discovery knows, or nobody.
fn decide(
    policy: &PodPolicy,
    direction: Direction,
    protocol: Protocol,
    (address, port): (IpAddr, u16),
    workload: Option<&Workload>,
    dialled: Option<&Arc<str>>,
) -> Option<Reason> {
    let services = workload.into_iter().flat_map(|w| w.services.keys());
    let services: Vec<_> = services.chain(dialled).cloned().collect();
    let no_labels = Labels::new();
    let flow = Flow {
        direction,
        peer: Peer {
            address,
            member: protocol == Protocol::Tcp && workload.is_some_and(Workload::enrolled),
            identity: workload.map(|w| &w.identity),
            services: &services,
            labels: workload.map_or(&no_labels, |w| &w.labels),
        },
        port,
        protocol,
    };
    policy.decide(&flow).refused
}

/// Every decision that the source's worker could come to.
fn tcp_out(
    policy: &PodPolicy,
    own: &[IpAddr],
    mesh: &Mesh,
    (address, port): (IpAddr, u16),
) -> Vec<Option<Reason>> {
    let is_own = |address: IpAddr| {
        own.iter()
            .any(|o| o.to_canonical() == address.to_canonical())
    };
    let decide = |at: (IpAddr, u16), workload, dialled| {
        if is_own(at.0) {
            return None;
        }
        decide(
            policy,
            Direction::Outbound,
            Protocol::Tcp,
            at,
            workload,
            dialled,
        )
    };
    if is_own(address) {
        return Vec::new();
    }
    match mesh.resolve(address.to_canonical(), port) {
        Resolution::Unknown => vec![decide((address, port), None, None)],
        Resolution::Workload(e) => vec![decide((address, port), Some(&e.workload), None)],
        Resolution::Service(key, endpoints) => endpoints
            .iter()
            .map(|e| decide((e.address, e.port), Some(&e.workload), Some(&key)))
            .collect(),
    }
}

fn udp_out(policy: &PodPolicy, mesh: &Mesh, address: IpAddr, port: u16) -> Option<Reason> {
    let decide = |at, workload, dialled| {
        decide(
            policy,
            Direction::Outbound,
            Protocol::Udp,
            at,
            workload,
            dialled,
        )
    };
    match mesh.resolve(address.to_canonical(), port) {
        Resolution::Unknown => decide((address, port), None, None),
        Resolution::Workload(e) => decide((address, port), Some(&e.workload), None),
        Resolution::Service(key, endpoints) => {
            let behind = endpoints.iter();
            let mut behind =
                behind.map(|e| decide((e.address, e.port), Some(&e.workload), Some(&key)));
            let denied = behind.find(|refused| *refused == Some(Reason::PolicyDenied));
            denied.unwrap_or_else(|| decide((address, port), None, Some(&key)))
        }
    }
}

fn udp_in(policy: &PodPolicy, mesh: &Mesh, address: IpAddr, port: u16) -> Option<Reason> {
    let workload = mesh.workload_at(address.to_canonical());
    let workload = workload.map(|workload| &**workload);
    decide(
        policy,
        Direction::Inbound,
        Protocol::Udp,
        (address, port),
        workload,
        None,
    )
}

#[test]
fn the_kernel_refuses_what_the_worker_would_and_lets_through_the_udp_that_policy_allows() {
    let strategy = (
        generated::policies(10),
        mesh(),
        prop::collection::vec(generated::address(), 0..3),
        prop::collection::vec(generated::address(), 0..2),
    );
    let met: RefCell<BTreeMap<&str, u32>> = RefCell::default();
    let config = Config {
        cases: 8_000,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&strategy, |(policies, mesh, resolvers, mut own)| {
        // No pod has a service's address.
        own.retain(|address| mesh.service_at(address.to_canonical()).is_none());
        let policy = PodPolicy::new(policies, Vec::new(), resolvers);
        let kernel = KernelPolicy::new(&policy, &own, &mesh);
        prop_assert_eq!(kernel.left_out, 0);
        for (address, port) in addresses().flat_map(|a| PORTS.map(|port| (a, port))) {
            let mut met = met.borrow_mut();
            let mut meet = |what, is| *met.entry(what).or_default() += u32::from(is);
            let is_own = own
                .iter()
                .any(|o| o.to_canonical() == address.to_canonical());
            let at_service = mesh.service_at(address.to_canonical()).is_some();

            let decisions = tcp_out(&policy, &own, &mesh, (address, port));
            let denied = Some(Reason::PolicyDenied);
            let denied = !decisions.is_empty() && decisions.iter().all(|d| *d == denied);
            let verdict = kernel.look_up(KernelClass::TcpOut, address, port);
            prop_assert_eq!(
                verdict == Some(KernelVerdict::Deny),
                denied,
                "TCP {} {}",
                address,
                port
            );
            meet("looked up", true);
            meet("denied", denied);
            meet("own", is_own);
            meet("denied at a service", denied && at_service);

            let allow = Some(KernelVerdict::Allow);
            let passes = kernel.look_up(KernelClass::UdpOut, address, port) == allow;
            let refused = udp_out(&policy, &mesh, address, port);
            prop_assert_eq!(passes, refused.is_none(), "UDP to {} {}", address, port);
            meet("UDP out", passes);
            meet("UDP out to a service", passes && at_service);

            let passes = kernel.look_up(KernelClass::UdpIn, address, port) == allow;
            let refused = udp_in(&policy, &mesh, address, port);
            prop_assert_eq!(
                passes,
                refused.is_none(),
                "UDP from {} at {}",
                address,
                port
            );
            meet("UDP in", passes);
            meet("UDP denied", refused == Some(Reason::PolicyDenied));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let met = met.into_inner();
    for (what, least) in [
        ("looked up", 400_000),
        ("denied", 10_000),
        ("denied at a service", 100),
        ("own", 10_000),
        ("UDP out", 5_000),
        ("UDP out to a service", 500),
        ("UDP in", 2_000),
        ("UDP denied", 10_000),
    ] {
        assert!(met[what] >= least, "{what} of {met:?}");
    }
}

fn rule(peer: PeerTerm, port: PortTerm) -> Vec<Rule> {
    vec![Rule {
        peers: vec![peer],
        ports: BTreeSet::from([port]),
    }]
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Arc<AuthorizationPolicy> {
    Arc::new(AuthorizationPolicy {
        key: format!("a/{name}").into(),
        target: Target::Namespace,
        direction: Direction::Outbound,
        action,
        rules,
    })
}

fn many_workloads() -> (Mesh, Vec<IpAddr>) {
    let mut mesh = Mesh::default();
    let count = u32::try_from(MAX_PREFIXES).unwrap() + 100;
    let address = |n: u32| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + 2 * n));
    for n in 0..count {
        let identity = "spiffe://td/ns/a/sa/x".parse().unwrap();
        mesh.insert_workload(Workload {
            addresses: vec![address(n)],
            ..Workload::new(format!("w{n}"), "", identity)
        });
    }
    (mesh, (0..count).map(address).collect())
}

fn every(protocol: Protocol) -> PortTerm {
    PortTerm {
        port: None,
        protocol,
    }
}

#[test]
fn what_has_no_room_is_left_to_the_worker_or_stays_refused() {
    let (mesh, addresses) = many_workloads();
    let namespace = || PeerTerm {
        namespace: Some("a".into()),
        ..PeerTerm::default()
    };
    let block = || PeerTerm {
        cidr: Some("10.0.0.0/8".parse().unwrap()),
        ..PeerTerm::default()
    };
    let resolver: IpAddr = "192.0.2.53".parse().unwrap();
    let new = |policies| {
        let policy = PodPolicy::new(policies, Vec::new(), vec![resolver]);
        let kernel = KernelPolicy::new(&policy, &[], &mesh);
        assert!(kernel.prefixes.len() <= MAX_PREFIXES);
        let verdicts = kernel.prefixes.values().map(BTreeMap::len);
        assert!(verdicts.sum::<usize>() <= MAX_VERDICTS);
        let dns = kernel.look_up(KernelClass::UdpOut, resolver, 53);
        assert_eq!(dns, Some(KernelVerdict::Allow));
        (policy, kernel)
    };
    let count = |kernel: &KernelPolicy, class, verdict| {
        let looked_up = addresses.iter().map(|a| kernel.look_up(class, *a, 80));
        looked_up.filter(|found| *found == Some(verdict)).count()
    };

    // Denials of single workloads: as many as there is room for.
    let denial = policy(
        "deny",
        Action::Deny,
        rule(namespace(), every(Protocol::Tcp)),
    );
    let (_, kernel) = new(vec![denial.clone()]);
    assert!(kernel.left_out >= 100);
    let denied = count(&kernel, KernelClass::TcpOut, KernelVerdict::Deny);
    assert_eq!(denied + kernel.left_out, addresses.len());

    // UDP that is allowed to a block, but not to the workloads in it: none of it passes.
    let allowed = policy("udp", Action::Allow, rule(block(), every(Protocol::Udp)));
    let refused = policy(
        "no-udp",
        Action::Deny,
        rule(namespace(), every(Protocol::Udp)),
    );
    let (policy, kernel) = new(vec![denial, allowed, refused]);
    assert!(kernel.left_out >= addresses.len());
    assert_eq!(count(&kernel, KernelClass::UdpOut, KernelVerdict::Allow), 0);
    assert_eq!(count(&kernel, KernelClass::TcpOut, KernelVerdict::Deny), 0);
    let refused = udp_out(&policy, &mesh, addresses[0], 80);
    assert_eq!(refused, Some(Reason::PolicyDenied));
}

#[test]
fn nothing_said_is_nothing_to_look_up() {
    let kernel = KernelPolicy::new(&PodPolicy::default(), &[], &many_workloads().0);
    assert_eq!(kernel, KernelPolicy::default());
}
