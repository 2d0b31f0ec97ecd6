//! Which policies select a workload: what [`Mesh::policies_for`] looks up is what a scan finds.

use std::collections::BTreeMap;

use mesh_core::model::{Mesh, Workload};
use mesh_core::policy::{
    Action, AuthenticationPolicy, AuthorizationPolicy, Direction, MESH_NAMESPACE, Target,
};
use proptest::prelude::*;

/// Names that begin alike or sort next to '/', so that a careless range shows.
const NAMESPACES: [&str; 5] = ["a", "a-b", "a0", "ab", MESH_NAMESPACE];

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::Mesh),
        Just(Target::Namespace),
        (0..2i32).prop_map(|n| Target::Service(format!("a/s{n}").into())),
        (0..2i32).prop_map(|n| Target::Labels(BTreeMap::from([("k".to_owned(), n.to_string())]))),
    ]
}

fn policies() -> impl Strategy<Value = Vec<(usize, u8, Target)>> {
    prop::collection::vec((0..NAMESPACES.len(), 0u8..3, target()), 0..20)
}

proptest! {
    #[test]
    fn a_workload_gets_the_policies_that_select_it_and_no_others(
        policies in policies(),
        namespace in 0..NAMESPACES.len(),
        label in prop::option::of(0..2i32),
        service in prop::option::of(0..2i32),
    ) {
        let identity = format!("spiffe://td/ns/{}/sa/x", NAMESPACES[namespace]);
        let mut workload = Workload::new("uid", "w", identity.parse().unwrap());
        workload.labels.extend(label.map(|n| ("k".to_owned(), n.to_string())));
        workload.services.extend(service.map(|n| (format!("a/s{n}").into(), BTreeMap::new())));

        let mut mesh = Mesh::default();
        for (namespace, name, target) in policies {
            let key = format!("{}/{name}", NAMESPACES[namespace]);
            mesh.insert_authorization(AuthorizationPolicy {
                key: key.as_str().into(),
                target: target.clone(),
                direction: Direction::Inbound,
                action: Action::Allow,
                rules: Vec::new(),
            });
            mesh.insert_authentication(AuthenticationPolicy {
                key: key.as_str().into(),
                target,
                mode: None,
                ports: BTreeMap::new(),
            });
        }
        let (authorizations, authentications) = mesh.policies_for(&workload);
        let scanned: Vec<_> = mesh.authorizations().filter(|p| p.selects(&workload)).cloned().collect();
        prop_assert_eq!(authorizations, scanned);
        let scanned: Vec<_> = mesh.authentications().filter(|p| p.selects(&workload)).cloned().collect();
        prop_assert_eq!(authentications, scanned);
    }
}
