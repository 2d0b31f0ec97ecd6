//! A node speaks for the enrolled pods bound to it, and for nobody else.

use mesh_core::attestation::{AttestationRefusal, attest};
use mesh_core::identity::{Identity, NodeIdentity, TrustDomain};
use mesh_core::model::{Enrolment, Mesh, Workload};
use proptest::prelude::*;

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn identity(account: &str) -> Identity {
    Identity::new(domain(), "shop", account).unwrap()
}

fn node(name: &str) -> NodeIdentity {
    NodeIdentity::new(domain(), name).unwrap()
}

fn pod(n: usize, account: &str, node: &str, enrolled: bool) -> Workload {
    let uid = format!("Kubernetes//v1/Pod/shop/p{n}");
    Workload {
        node: node.to_owned(),
        enrolment: if enrolled {
            Enrolment::Enforce
        } else {
            Enrolment::None
        },
        ..Workload::new(uid, format!("p{n}"), identity(account))
    }
}

#[test]
fn each_refusal_says_why() {
    let mut mesh = Mesh::default();
    mesh.insert_workload(pod(1, "cart", "a", true));
    mesh.insert_workload(pod(2, "legacy", "a", false));
    assert_eq!(
        attest(&mesh, &node("a"), &identity("cart")).unwrap().name,
        "p1"
    );
    let elsewhere = attest(&mesh, &node("b"), &identity("cart")).unwrap_err();
    assert!(matches!(elsewhere, AttestationRefusal::NoPodOnNode { .. }));
    let plain = attest(&mesh, &node("a"), &identity("legacy")).unwrap_err();
    assert!(matches!(plain, AttestationRefusal::NotEnrolled { .. }));
    assert!(plain.to_string().contains("p2"), "{plain}");
    let foreign = NodeIdentity::new("other".parse().unwrap(), "a").unwrap();
    let foreign = attest(&mesh, &foreign, &identity("cart")).unwrap_err();
    assert!(matches!(foreign, AttestationRefusal::TrustDomain { .. }));
}

proptest! {
    #[test]
    fn a_node_gets_an_identity_exactly_if_one_of_its_enrolled_pods_has_it(
        pods in prop::collection::vec((0usize..3, 0usize..3, any::<bool>()), 0..8),
        asker in 0usize..3,
        asked in 0usize..3,
    ) {
        let (account, host) = (|n| format!("sa{n}"), |n| format!("n{n}"));
        let mut mesh = Mesh::default();
        for (i, (a, n, hbone)) in pods.iter().enumerate() {
            mesh.insert_workload(pod(i, &account(*a), &host(*n), *hbone));
        }
        let entitled = pods.contains(&(asked, asker, true));
        let answer = attest(&mesh, &node(&host(asker)), &identity(&account(asked)));
        prop_assert_eq!(answer.is_ok(), entitled);
    }
}
