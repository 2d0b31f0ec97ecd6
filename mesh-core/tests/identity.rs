//! Identities: parse and format are inverse, and nothing else than an identity parses.

use mesh_core::identity::{Identity, NodeIdentity, TrustDomain};
use proptest::prelude::*;

const SEGMENT: &str = "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}";

proptest! {
    #[test]
    fn a_workload_identity_survives_its_text(
        domain in "[a-z0-9._-]{1,30}", namespace in SEGMENT, account in SEGMENT,
    ) {
        let domain: TrustDomain = domain.parse().unwrap();
        let identity = Identity::new(domain, &namespace, &account).unwrap();
        let text = identity.to_string();
        prop_assert_eq!(text.parse::<Identity>(), Ok(identity));
        prop_assert!(text.parse::<NodeIdentity>().is_err());
    }

    #[test]
    fn a_node_identity_survives_its_text(domain in "[a-z0-9._-]{1,30}", node in SEGMENT) {
        let node = NodeIdentity::new(domain.parse().unwrap(), &node).unwrap();
        let text = node.to_string();
        prop_assert_eq!(text.parse::<NodeIdentity>(), Ok(node));
        prop_assert!(text.parse::<Identity>().is_err());
    }

    #[test]
    fn what_parses_is_what_it_prints(text in "(spiffe://)?[a-zA-Z0-9./%_ -]{0,40}") {
        if let Ok(identity) = text.parse::<Identity>() {
            prop_assert_eq!(identity.to_string(), text.clone());
        }
        if let Ok(node) = text.parse::<NodeIdentity>() {
            prop_assert_eq!(node.to_string(), text);
        }
    }

    #[test]
    fn nearly_an_identity_is_none(
        namespace in SEGMENT, account in SEGMENT, spoil in 0usize..6,
    ) {
        let text = match spoil {
            0 => format!("spiffe://td/ns/{namespace}/sa/{account}/"),
            1 => format!("spiffe://td//ns/{namespace}/sa/{account}"),
            2 => format!("spiffe://td/ns/{namespace}/sa/{account}?x"),
            3 => format!("SPIFFE://td/ns/{namespace}/sa/{account}"),
            4 => format!("spiffe://td/ns/{namespace}/{account}"),
            _ => format!("spiffe://td:8443/ns/{namespace}/sa/{account}"),
        };
        prop_assert!(text.parse::<Identity>().is_err(), "{} parsed", text);
    }
}
