//! Who somebody says to be.

use mesh_core::certificate::{Leaf, Side};
use mesh_core::identity::{Identity, NodeIdentity, TrustDomain};

/// SPIFFE IDs: what is taken is what was written, and no text is both a workload and a node.
pub(crate) fn spiffe_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let workload = text.parse::<Identity>();
    let node = text.parse::<NodeIdentity>();
    assert!(workload.is_err() || node.is_err());
    if let Ok(identity) = &workload {
        assert_eq!(identity.to_string(), text);
        let (namespace, account) = (identity.namespace(), identity.service_account());
        let again = Identity::new(identity.trust_domain().clone(), namespace, account);
        assert_eq!(again.as_ref(), Ok(identity));
    }
    if let Ok(identity) = &node {
        assert_eq!(identity.to_string(), text);
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
    }
    for fault in [workload.err(), node.err()].into_iter().flatten() {
        assert!(!fault.to_string().chars().any(char::is_control));
    }
}

/// Certificates of peers: who passes has one name, of this mesh, and signs for nobody.
pub(crate) fn certificate(der: &[u8]) {
    let leaf = match Leaf::from_der(der) {
        Ok(leaf) => leaf,
        Err(fault) => {
            assert!(!fault.to_string().chars().any(char::is_control));
            return;
        }
    };
    let domain: TrustDomain = "cluster.local".parse().expect("a trust domain");
    for side in [Side::Server, Side::Client] {
        if let Ok(identity) = leaf.workload(side, &domain) {
            assert_eq!(leaf.uris, [identity.to_string()]);
            assert!(!leaf.is_ca && leaf.digital_signature);
            assert!(leaf.server_auth || side == Side::Client);
            assert!(leaf.client_auth || side == Side::Server);
            assert!(leaf.node(&domain).is_err());
        }
    }
}
