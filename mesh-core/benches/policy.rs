//! Nanoseconds per decision, by the number and the shape of policies.
//!
//! Then milliseconds to compile a pod's policy, for its worker and for the kernel, in a large mesh.
//!
//! `cargo bench -p mesh-core --bench policy`. Flows that match and flows that don't take turns;
//! each figure is the median of several runs.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mesh_core::identity::Identity;
use mesh_core::model::{Mesh, Service, ServiceKey, Workload};
use mesh_core::policy::kernel::KernelPolicy;
use mesh_core::policy::{
    Action, AuthorizationPolicy, Direction, Flow, Labels, Peer, PeerTerm, PodPolicy, PortTerm,
    Protocol, Rule, Target,
};
use mesh_core::traffic::Traffic;

const COUNTS: [u32; 3] = [10, 1_000, 10_000];
const RUNS: usize = 301;
const FLOWS: u32 = 256;
/// What deciding one flow may take.
const TARGET: Duration = Duration::from_micros(2);

/// What one flow is asked with.
struct Call {
    address: IpAddr,
    identity: Identity,
    services: Vec<ServiceKey>,
    labels: Labels,
    port: u16,
}

/// The `n`th policy's peer and port, and a flow that only policies like it match.
struct Shape {
    name: &'static str,
    term: fn(u32) -> (PeerTerm, Option<u16>),
    call: fn(u32) -> Call,
}

fn identity(n: u32) -> Identity {
    let domain = "cluster.local".parse().expect("a trust domain");
    Identity::new(domain, "shop", &format!("account-{n}")).expect("an identity")
}

fn label(key: impl Into<String>, value: u32) -> (String, String) {
    (key.into(), value.to_string())
}

fn port(n: u32) -> u16 {
    u16::try_from(n % 60_000 + 1).unwrap_or(1)
}

/// A pod like many: eight labels, two services.
fn call() -> Call {
    Call {
        address: Ipv4Addr::new(10, 1, 2, 3).into(),
        identity: identity(0),
        services: vec!["shop/web".into(), "shop/web-headless".into()],
        labels: (0..8)
            .map(|n| label(format!("example.com/label-{n}"), 0))
            .collect(),
        port: 8080,
    }
}

fn v4(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 | n << 4).into()
}

fn of(term: PeerTerm) -> (PeerTerm, Option<u16>) {
    (term, Some(8080))
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "an identity each",
        term: |n| {
            of(PeerTerm {
                identity: Some(identity(n)),
                ..PeerTerm::default()
            })
        },
        call: |n| Call {
            identity: identity(n),
            ..call()
        },
    },
    Shape {
        name: "a namespace each",
        term: |n| {
            of(PeerTerm {
                namespace: Some(format!("ns-{n}").into()),
                ..PeerTerm::default()
            })
        },
        call: |n| {
            let identity = format!("spiffe://cluster.local/ns/ns-{n}/sa/x");
            Call {
                identity: identity.parse().expect("an identity"),
                ..call()
            }
        },
    },
    Shape {
        name: "a service each",
        term: |n| {
            of(PeerTerm {
                service: Some(format!("shop/s{n}").into()),
                ..PeerTerm::default()
            })
        },
        call: |n| Call {
            services: vec![format!("shop/s{n}").into()],
            ..call()
        },
    },
    Shape {
        name: "one namespace, a port each",
        term: |n| {
            (
                PeerTerm {
                    namespace: Some("shop".into()),
                    ..PeerTerm::default()
                },
                Some(port(n)),
            )
        },
        call: |n| Call {
            port: port(n),
            ..call()
        },
    },
    Shape {
        name: "one identity, a v4 block each",
        term: |n| {
            let cidr = IpNet::new(v4(n), 28).ok();
            of(PeerTerm {
                identity: Some(identity(0)),
                cidr,
                ..PeerTerm::default()
            })
        },
        call: |n| Call {
            address: v4(n),
            ..call()
        },
    },
    Shape {
        name: "v6 blocks in one another",
        term: |n| {
            let length = u8::try_from(n % 129).unwrap_or(0);
            let cidr = IpNet::new(Ipv6Addr::from_bits(u128::MAX).into(), length).ok();
            let labels = [label("k", n / 129)].into();
            of(PeerTerm {
                cidr: cidr.map(|c| c.trunc()),
                labels,
                ..PeerTerm::default()
            })
        },
        call: |n| Call {
            address: Ipv6Addr::from_bits(u128::MAX).into(),
            labels: [label("k", n / 129)].into(),
            ..call()
        },
    },
    Shape {
        name: "a label each",
        term: |n| {
            of(PeerTerm {
                labels: [label("app", n)].into(),
                ..PeerTerm::default()
            })
        },
        call: |n| {
            let mut call = call();
            call.labels.extend([label("app", n)]);
            call
        },
    },
    Shape {
        name: "pairs of 100 labels with 100",
        term: |n| {
            let labels = [label("a", n % 100), label("b", n / 100)].into();
            of(PeerTerm {
                labels,
                ..PeerTerm::default()
            })
        },
        call: |n| {
            let mut call = call();
            call.labels
                .extend([label("a", n % 100), label("b", n / 100)]);
            call
        },
    },
    Shape {
        name: "4 of 20 labels, peers with 10",
        term: |n| {
            let some = n.wrapping_mul(2_654_435_761);
            let labels = (0..4).map(|i| label(format!("l{}", (some >> (6 * i)) % 20), 1));
            of(PeerTerm {
                labels: labels.collect(),
                ..PeerTerm::default()
            })
        },
        call: |n| {
            let mut call = call();
            call.labels
                .extend((0..10).map(|i| label(format!("l{}", (n + 2 * i) % 20), 1)));
            call
        },
    },
];

fn policy(
    n: u32,
    direction: Direction,
    action: Action,
    peer: PeerTerm,
    port: Option<u16>,
) -> AuthorizationPolicy {
    let port = PortTerm {
        port,
        protocol: Protocol::Tcp,
    };
    AuthorizationPolicy {
        key: format!("shop/policy-{n}").into(),
        target: Target::Namespace,
        direction,
        action,
        rules: vec![Rule {
            peers: vec![peer],
            ports: BTreeSet::from([port]),
        }],
    }
}

fn policies(shape: &Shape, count: u32) -> PodPolicy {
    let policy = |n| {
        let (term, port) = (shape.term)(n);
        // One in ten denies, so that neither kind is all there is.
        let action = if n % 10 == 9 {
            Action::Deny
        } else {
            Action::Allow
        };
        Arc::new(policy(n, Direction::Inbound, action, term, port))
    };
    PodPolicy::new((0..count).map(policy).collect(), Vec::new(), Vec::new())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    println!(
        "{:<32} {:>10} {:>12} {:>14} {:>12}",
        "policies", "count", "ns/decision", "decisions/s", "build ms"
    );
    let mut slowest = Duration::ZERO;
    for shape in SHAPES {
        for count in COUNTS {
            let started = Instant::now();
            let policy = policies(shape, count);
            let built = started.elapsed();
            // Every second flow is of the shape but of no policy.
            let calls: Vec<_> = (0..FLOWS)
                .map(|i| {
                    let n = i.wrapping_mul(2_654_435_761) % count;
                    (shape.call)(if i % 2 == 0 { n } else { n + count })
                })
                .collect();
            let flow = |call: &Call| {
                black_box(
                    policy
                        .decide(&Flow {
                            direction: Direction::Inbound,
                            peer: Peer {
                                address: call.address,
                                member: true,
                                identity: Some(&call.identity),
                                services: &call.services,
                                labels: &call.labels,
                            },
                            port: call.port,
                            protocol: Protocol::Tcp,
                        })
                        .refused
                        .is_some(),
                )
            };
            let run = || {
                let started = Instant::now();
                for call in &calls {
                    flow(black_box(call));
                }
                started.elapsed() / FLOWS
            };
            let each = median((0..RUNS).map(|_| run()).collect());
            slowest = slowest.max(each);
            let ns = each.as_nanos().max(1);
            println!(
                "{:<32} {count:>10} {ns:>12} {:>14} {:>12.1}",
                shape.name,
                1_000_000_000 / ns,
                built.as_secs_f64() * 1e3
            );
        }
    }
    report(slowest);
    compile();
}

fn report(slowest: Duration) {
    let verdict = if slowest < TARGET { "within" } else { "MISSED" };
    println!(
        "slowest: {} ns; the target of {} ns is {verdict}",
        slowest.as_nanos(),
        TARGET.as_nanos()
    );
}

/// A mesh of 5,000 workloads behind 500 services, with 1,000 policies in the pod's namespace.
fn compile() {
    let mut mesh = Mesh::default();
    for n in 0..500u32 {
        let key: ServiceKey = format!("shop/s{n}").into();
        for m in 0..10 {
            let n = n * 10 + m;
            let services = [(key.clone(), [(80, 8080)].into())].into();
            mesh.insert_workload(Workload {
                addresses: vec![v4(n)],
                labels: [label("app", n % 100)].into(),
                services,
                ..Workload::new(format!("w{n}"), "", identity(n % 50))
            });
        }
        mesh.insert_service(Service {
            key,
            name: String::new(),
            namespace: "shop".to_owned(),
            addresses: vec![Ipv4Addr::from_bits(0x0a60_0000 + n).into()],
            ports: [80].into(),
            traffic: Traffic::default(),
        });
    }
    let pod = mesh.workload("w0").expect("a workload").clone();
    let cidr = |text: &str| PeerTerm {
        cidr: text.parse().ok(),
        ..PeerTerm::default()
    };
    let namespace = PeerTerm {
        namespace: Some("shop".into()),
        ..PeerTerm::default()
    };
    println!(
        "\n{:<48} {:>10} {:>10} {:>10}",
        "5,000 workloads, 1,000 policies, and outbound", "policy ms", "kernel ms", "blocks"
    );
    for (name, denial) in [
        ("no denial", None),
        ("one denial of a block", Some(cidr("192.0.2.0/24"))),
        (
            "one denial of everything in a block",
            Some(cidr("10.0.0.0/8")),
        ),
        ("one denial of the namespace", Some(namespace)),
    ] {
        let mut mesh = mesh.clone();
        for n in 0..1_000 {
            let (peer, port) = (SHAPES[0].term)(n);
            mesh.insert_authorization(policy(n, Direction::Inbound, Action::Allow, peer, port));
        }
        if let Some(peer) = denial {
            let policy = policy(1_000, Direction::Outbound, Action::Deny, peer, None);
            mesh.insert_authorization(policy);
        }
        let started = Instant::now();
        let policy = PodPolicy::for_workload(&mesh, &pod, Vec::new());
        let built = started.elapsed();
        let started = Instant::now();
        let kernel = KernelPolicy::new(&policy, &pod.addresses, &mesh);
        let compiled = started.elapsed();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "{name:<48} {:>10.1} {:>10.1} {:>10}",
            ms(built),
            ms(compiled),
            kernel.prefixes.len()
        );
    }
}
