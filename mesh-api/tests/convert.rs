//! The model goes over the wire and comes back the same; what is malformed is refused with
//! its field named.

use std::net::IpAddr;

use mesh_api::convert::{Entry, workload_from_wire, workload_to_wire};
use mesh_api::workload as wire;
use mesh_core::budget::Fields;
use mesh_core::identity::{Identity, TrustDomain};
use mesh_core::model::{Enrolment, ForeignProcesses, Service, TunnelPort, Workload};
use proptest::prelude::*;

fn own() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn good() -> wire::Workload {
    wire::Workload {
        uid: "Kubernetes//v1/Pod/shop/cart-1".into(),
        name: "cart-1".into(),
        namespace: "shop".into(),
        service_account: "cart".into(),
        node: "node-a".into(),
        addresses: vec![vec![10, 0, 0, 7]],
        tunnel_protocol: 1,
        ..Default::default()
    }
}

#[test]
fn a_workload_without_trust_domain_and_account_has_the_meshs_defaults() {
    let mut entry = good();
    entry.service_account.clear();
    let workload = workload_from_wire(&entry, &own()).unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/default";
    assert_eq!(workload.identity.to_string(), identity);
    assert_eq!(workload.enrolment, Enrolment::Enforce);
}

#[test]
fn malformed_workloads_are_refused_with_the_field_named() {
    type Spoil = fn(&mut wire::Workload);
    let ports = |service_port, target_port| wire::PortList {
        ports: vec![wire::Port {
            service_port,
            target_port,
        }],
    };
    let table: [(Spoil, &str); 14] = [
        (|w| w.uid.clear(), "uid is empty"),
        (|w| w.name.clear(), "name is empty"),
        (|w| w.namespace.clear(), "namespace is empty"),
        (|w| w.trust_domain = "Upper".into(), "trust domain"),
        (|w| w.service_account = "a/b".into(), "path segment"),
        (|w| w.addresses = vec![vec![1; 5]], "addresses has 5 bytes"),
        (|w| w.addresses = vec![vec![]], "addresses has 0 bytes"),
        (|w| w.addresses = vec![vec![0; 4]], "addresses is 0.0.0.0"),
        (|w| w.addresses = vec![vec![0xff; 16]], "addresses is ffff"),
        (|w| w.tunnel_protocol = 7, "tunnel_protocol is 7"),
        (|w| w.status = -1, "status is -1"),
        (|w| w.probe_ports = vec![80, 0], "probe_ports is 0"),
        (|w| w.workload_type = 99, "workload_type is 99"),
        (
            |w| {
                w.services
                    .insert("nohost".into(), wire::PortList::default());
            },
            "services has \"nohost\"",
        ),
    ];
    for (spoil, expected) in table {
        let mut entry = good();
        spoil(&mut entry);
        let error = workload_from_wire(&entry, &own()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should say {expected}");
    }
    for (list, expected) in [
        (ports(0, 80), "services.ports.service_port is 0"),
        (ports(80, 65536), "services.ports.target_port is 65536"),
    ] {
        let mut entry = good();
        entry.services.insert("shop/cart.shop".into(), list);
        let error = workload_from_wire(&entry, &own()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should say {expected}");
    }
}

#[test]
fn malformed_services_and_empty_entries_are_refused() {
    let good = wire::Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
        ..Default::default()
    };
    assert!(Service::try_from(&good).is_ok());
    type Spoil = fn(&mut wire::Service);
    let table: [(Spoil, &str); 5] = [
        (|s| s.name.clear(), "name is empty"),
        (|s| s.namespace.clear(), "namespace is empty"),
        (|s| s.hostname.clear(), "hostname is empty"),
        (
            |s| {
                s.addresses.push(wire::NetworkAddress {
                    network: String::new(),
                    address: vec![1, 2, 3],
                });
            },
            "addresses.address has 3 bytes",
        ),
        (
            |s| {
                s.ports.push(wire::Port {
                    service_port: 70000,
                    target_port: 0,
                });
            },
            "ports.service_port is 70000",
        ),
    ];
    for (spoil, expected) in table {
        let mut service = good.clone();
        spoil(&mut service);
        let error = Service::try_from(&service).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should say {expected}");
    }
    let nothing = wire::Address { r#type: None };
    let error = Entry::from_wire(&nothing, &own()).unwrap_err();
    assert!(error.to_string().contains("type is empty"), "{error}");
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|v4| IpAddr::from(v4.to_be_bytes())),
        any::<[u8; 16]>().prop_map(|v6| IpAddr::from(v6).to_canonical())
    ]
    .prop_filter("an address something can have", |a| {
        !a.is_unspecified() && !a.is_multicast()
    })
}

fn key() -> impl Strategy<Value = std::sync::Arc<str>> {
    ("[a-z]{1,5}", "[a-z.]{1,9}").prop_map(|(ns, host)| format!("{ns}/{host}").into())
}

fn workload() -> impl Strategy<Value = Workload> {
    (
        (
            "[a-z]{1,9}",
            "[a-z0-9-]{1,9}",
            "[a-z0-9-]{1,9}",
            "[a-z0-9.]{1,9}",
        ),
        prop::collection::vec(address(), 0..4),
        prop_oneof![
            Just(Enrolment::None),
            Just(Enrolment::Audit),
            Just(Enrolment::Enforce)
        ],
        prop_oneof![Just(TunnelPort::Hbone), Just(TunnelPort::Original)],
        prop_oneof![
            Just(ForeignProcesses::Audit),
            Just(ForeignProcesses::Refuse),
            Just(ForeignProcesses::RefuseExec)
        ],
        any::<bool>(),
        prop::collection::btree_map(
            key(),
            prop::collection::btree_map(1u16.., 1u16.., 0..4),
            0..4,
        ),
        prop::collection::btree_set(1u16.., 0..4),
        prop::collection::vec(prop::option::of(0u32..2000), 11),
    )
        .prop_map(
            |(
                (node, namespace, account, domain),
                addresses,
                enrolment,
                tunnel_port,
                foreign_processes,
                shares_processes,
                services,
                probe_ports,
                budget,
            )| {
                let identity = Identity::new(domain.parse().unwrap(), &namespace, &account);
                let uid = format!("Kubernetes//v1/Pod/{namespace}/{node}");
                Workload {
                    node: node.clone(),
                    addresses,
                    enrolment,
                    tunnel_port,
                    foreign_processes,
                    shares_processes,
                    services,
                    probe_ports,
                    budget: fields(&budget).in_range(),
                    ..Workload::new(uid, node, identity.unwrap())
                }
            },
        )
}

/// A budget that says this, in the order of its fields.
fn fields(said: &[Option<u32>]) -> Fields {
    Fields {
        cpu_weight: said[0],
        cpu_max_millicores: said[1],
        memory_max_mib: said[2],
        connections: said[3],
        connections_per_second: said[4],
        handshakes: said[5],
        handshakes_per_second: said[6],
        tunnels: said[7],
        streams: said[8],
        streams_per_tunnel: said[9],
        buffered_mib: said[10],
    }
}

#[test]
fn a_budget_out_of_range_comes_to_the_nearest() {
    let mut entry = good();
    entry.budget = Some(mesh_api::policy::Budget {
        cpu_weight: Some(u32::MAX),
        cpu_max_millicores: Some(0),
        memory_max_mib: Some(1),
        ..Default::default()
    });
    let budget = workload_from_wire(&entry, &own()).unwrap().budget;
    let said = [
        budget.cpu_weight,
        budget.cpu_max_millicores,
        budget.memory_max_mib,
    ];
    assert_eq!(said, [Some(10_000), Some(0), Some(64)]);
    assert_eq!(budget.connections, None);
}

proptest! {
    #[test]
    fn a_workload_survives_the_wire(workload in workload()) {
        let sent = wire::Address {
            r#type: Some(wire::address::Type::Workload(workload_to_wire(&workload, "Kubernetes"))),
        };
        let bytes = prost::Message::encode_to_vec(&sent);
        let received: wire::Address = prost::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(Entry::from_wire(&received, &own()), Ok(Entry::Workload(workload)));
    }

    #[test]
    fn a_service_survives_the_wire(
        key in key(),
        addresses in prop::collection::vec(address(), 0..4),
        ports in prop::collection::btree_set(1u16.., 0..5),
    ) {
        let namespace = key.split_once('/').unwrap().0.to_owned();
        let service = Service { key, name: "svc".into(), namespace, addresses, ports, traffic: Default::default() };
        let sent = wire::Address {
            r#type: Some(wire::address::Type::Service((&service).into())),
        };
        let bytes = prost::Message::encode_to_vec(&sent);
        let received: wire::Address = prost::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(Entry::from_wire(&received, &own()), Ok(Entry::Service(service)));
    }
}
