//! Which leafs stand for whom, and how long a new one lives.

use mesh_core::certificate::{CLOCK_SKEW_S, Leaf, LeafFault, Side, Validity, leaf_validity};
use mesh_core::identity::TrustDomain;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};

const WORKLOAD: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const NODE: &str = "spiffe://cluster.local/nodemesh/node/node-a";

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// A leaf as it would come off the wire, built and parsed for real.
fn leaf(uris: &[&str], adjust: impl FnOnce(&mut CertificateParams)) -> Leaf {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    adjust(&mut params);
    let key = KeyPair::generate().unwrap();
    Leaf::from_der(params.self_signed(&key).unwrap().der()).unwrap()
}

#[test]
fn a_proper_leaf_stands_for_its_workload_on_both_sides() {
    let leaf = leaf(&[WORKLOAD], |_| ());
    for side in [Side::Server, Side::Client] {
        assert_eq!(
            leaf.workload(side, &domain()).unwrap().to_string(),
            WORKLOAD
        );
    }
}

#[test]
fn a_workload_is_no_node_and_a_node_is_no_workload() {
    let workload = leaf(&[WORKLOAD], |_| ());
    assert!(matches!(
        workload.node(&domain()),
        Err(LeafFault::Identity(_))
    ));
    let node = leaf(&[NODE], |_| ());
    assert_eq!(node.node(&domain()).unwrap().node(), "node-a");
    let refused = node.workload(Side::Client, &domain());
    assert!(matches!(refused, Err(LeafFault::Identity(_))));
}

#[test]
fn each_rule_refuses_alone() {
    type Adjust = fn(&mut CertificateParams);
    let ca: Adjust = |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert_sign: Adjust = |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let crl_sign: Adjust = |p| p.key_usages.push(KeyUsagePurpose::CrlSign);
    for adjust in [ca, cert_sign, crl_sign] {
        let leaf = leaf(&[WORKLOAD], adjust);
        assert_eq!(leaf.workload(Side::Client, &domain()), Err(LeafFault::IsCa));
    }
    let server_only = |p: &mut CertificateParams| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    for uri in [WORKLOAD, NODE] {
        let leaf = leaf(&[uri], server_only);
        let fault = Err(LeafFault::KeyUsage(Side::Client));
        assert_eq!(leaf.workload(Side::Client, &domain()), fault);
        assert_eq!(
            leaf.node(&domain()).map(|_| ()),
            Err(LeafFault::KeyUsage(Side::Client))
        );
    }
    let no_signature = leaf(&[WORKLOAD], |p| {
        p.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    });
    let fault = Err(LeafFault::KeyUsage(Side::Server));
    assert_eq!(no_signature.workload(Side::Server, &domain()), fault);
    for (uris, count) in [(&[][..], 0), (&[WORKLOAD, WORKLOAD][..], 2)] {
        let fault = Err(LeafFault::UriNames(count));
        assert_eq!(leaf(uris, |_| ()).workload(Side::Server, &domain()), fault);
    }
    let foreign = leaf(&["spiffe://other/ns/shop/sa/cart"], |_| ());
    let refused = foreign.workload(Side::Server, &domain());
    assert!(matches!(refused, Err(LeafFault::TrustDomain(..))));
    let foreign = leaf(&["spiffe://other/nodemesh/node/node-a"], |_| ());
    assert!(matches!(
        foreign.node(&domain()),
        Err(LeafFault::TrustDomain(..))
    ));
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    for bytes in [&b""[..], b"\x30\x03\x02\x01\x01", b"not a certificate"] {
        assert!(matches!(
            Leaf::from_der(bytes),
            Err(LeafFault::Malformed(_))
        ));
    }
}

proptest! {
    #[test]
    fn a_new_leaf_stays_inside_all_its_issuers(
        now in 0i64..4_000_000_000,
        lifetime in -5i64..1_000_000,
        issuers in prop::collection::vec((-100_000i64..100_000, -100_000i64..1_000_000), 0..4),
    ) {
        let issuers: Vec<_> = issuers
            .into_iter()
            .map(|(from, to)| Validity { not_before_s: now + from, not_after_s: now + to })
            .collect();
        let usable = issuers.iter().all(|i| i.not_before_s <= now && i.not_after_s > now);
        match leaf_validity(now, lifetime, &issuers) {
            Ok(leaf) => {
                prop_assert!(usable && lifetime > 0);
                prop_assert!(leaf.not_before_s <= now && leaf.not_after_s > now);
                prop_assert!(leaf.not_before_s >= now - CLOCK_SKEW_S);
                prop_assert!(leaf.not_after_s <= now + lifetime);
                for issuer in &issuers {
                    prop_assert!(leaf.not_before_s >= issuer.not_before_s);
                    prop_assert!(leaf.not_after_s <= issuer.not_after_s);
                }
            }
            Err(_) => prop_assert!(!usable || lifetime <= 0),
        }
    }
}
