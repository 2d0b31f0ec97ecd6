//! Certificates, as control signs them for a node.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use mesh_api::ca::IstioCertificateRequest;
use mesh_control::ca::{Authority, SignerFiles, WORKLOAD_LIFETIME_S};
use mesh_control::now_s;
use mesh_control::server::sign;
use mesh_core::identity::NodeIdentity;
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::control;

thread_local! {
    static AUTHORITY: Authority = authority();
}

/// Requests of a seized node: metadata, identity, signing request, lifetime. What is signed is for
/// an identity that has a pod there, and short-lived.
pub(crate) fn certificate_request(bytes: &[u8]) {
    let Ok(request) = IstioCertificateRequest::decode(bytes) else {
        return;
    };
    let domain = control::trust_domain();
    let node = NodeIdentity::new(domain.clone(), "node-a").expect("a node");
    let mesh = control::mesh();
    let signed = AUTHORITY.with(|authority| sign(authority, &mesh, &node, &request));
    match signed {
        Ok(issued) => {
            let leaf = &issued.leaf;
            assert_eq!(leaf.uris, ["spiffe://cluster.local/ns/shop/sa/cart"]);
            assert!(!leaf.is_ca);
            assert!(leaf.not_after_s <= now_s() + WORKLOAD_LIFETIME_S);
        }
        Err(refused) => assert!(!refused.message.is_empty()),
    }
}

fn authority() -> Authority {
    let folder = tempfile::tempdir().expect("a folder");
    let (root, key) = certificate("root", IsCa::Ca(BasicConstraints::Unconstrained));
    let root_pem = root.self_signed(&key).expect("a root").pem();
    let root = Issuer::new(root, key);
    let (ca, key) = certificate("intermediate", IsCa::Ca(BasicConstraints::Constrained(0)));
    let ca_pem = ca.signed_by(&key, &root).expect("an intermediate").pem();
    let path = |name, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        path
    };
    let files = SignerFiles {
        ca_cert: &path("ca-cert.pem", &ca_pem),
        ca_key: &path("ca-key.pem", &key.serialize_pem()),
        root: &path("root.pem", &root_pem),
    };
    Authority::load(&files, &control::trust_domain(), now_s())
        .unwrap_or_else(|fault| panic!("{fault}"))
}

fn certificate(name: &str, is_ca: IsCa) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    (params, KeyPair::generate().expect("a key"))
}
