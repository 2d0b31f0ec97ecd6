//! Meshes by chance, at addresses that policies speak of.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::model::{Enrolment, Mesh, Service, Workload};
use proptest::prelude::*;

use crate::{generated, universe};

pub(crate) const PORTS: [u16; 4] = [53, 80, 81, 9];

/// Workloads and services at some of the addresses that policies speak of.
pub(crate) fn mesh() -> impl Strategy<Value = Mesh> {
    let ports = prop::collection::btree_map(generated::port(), generated::port(), 1..4);
    let workload = (
        generated::identity(),
        generated::labels(),
        any::<bool>(),
        prop::collection::btree_map(generated::service_key(), ports, 0..3),
    );
    let owned = prop_oneof![
        2 => workload.prop_map(|(identity, labels, enrolled, services)| {
            Owner::Workload(Box::new(Workload {
                labels,
                services,
                enrolment: if enrolled { Enrolment::Enforce } else { Enrolment::None },
                ..Workload::new("", "", identity)
            }))
        }),
        1 => generated::service_key().prop_map(Owner::Service),
    ];
    prop::collection::btree_map(
        generated::address().prop_map(|a| a.to_canonical()),
        owned,
        0..8,
    )
    .prop_map(|owners| {
        let mut mesh = Mesh::default();
        for (n, (address, owner)) in owners.into_iter().enumerate() {
            match owner {
                Owner::Workload(workload) => mesh.insert_workload(Workload {
                    uid: format!("w{n}").into(),
                    addresses: vec![address],
                    ..*workload
                }),
                Owner::Service(key) => mesh.insert_service(Service {
                    key,
                    name: String::new(),
                    namespace: String::new(),
                    addresses: vec![address],
                    ports: BTreeSet::new(),
                    traffic: Default::default(),
                }),
            };
        }
        mesh
    })
}

#[derive(Clone, Debug)]
enum Owner {
    Workload(Box<Workload>),
    Service(Arc<str>),
}

/// Those that policies speak of, and some that they don't.
pub(crate) fn addresses() -> impl Iterator<Item = IpAddr> {
    let unknown = [
        "10.0.0.3",
        "172.16.0.1",
        "2001:db8:1::",
        "::1",
        "ff02::1",
        "::fffe:1:1",
    ];
    unknown
        .into_iter()
        .chain(universe::ADDRESSES)
        .map(|text| text.parse().unwrap())
}
