//! Who gets a workload's certificate and what is in it, over real TLS.

mod support;

use mesh_api::ads::DeltaDiscoveryRequest;
use mesh_api::ads::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_control::audit::Event;
use mesh_control::refusal::Refusal;
use mesh_control::server::{Limits, Rate};
use mesh_core::certificate::{CLOCK_SKEW_S, Leaf, Side};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::pki::{Pki, openssl};
use support::{CART, Control, OLD, WEB, assert_refused, request, sign};
use tonic::Code;

fn leaf(pem: &str) -> Leaf {
    Leaf::from_der(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_node_gets_certificates_for_its_own_enrolled_pods_only() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let (csr, _) = request(|_| ());
    let chain = sign(&node, CART, &csr, 0).await.unwrap().cert_chain;
    let domain = "cluster.local".parse().unwrap();
    let identity = leaf(&chain[0]).workload(Side::Server, &domain).unwrap();
    assert_eq!(identity.to_string(), CART);

    for (identity, part) in [
        (
            WEB,
            "no pod of spiffe://cluster.local/ns/shop/sa/web is bound to node node-a",
        ),
        ("spiffe://cluster.local/ns/shop/sa/nobody", "no pod of"),
        (OLD, "not enrolled"),
        ("spiffe://other/ns/shop/sa/cart", "trust domain"),
    ] {
        let refused = sign(&node, identity, &csr, 0).await;
        assert_refused(refused, Code::PermissionDenied, part);
    }
    assert_eq!(control.audit.count(Event::WorkloadSigned), 1);
    assert_eq!(control.audit.count(Event::WorkloadRefused), 4);
    for (refusal, times) in [
        (Refusal::IdentityNotOnNode, 2),
        (Refusal::IdentityNotEnrolled, 1),
        (Refusal::IdentityTrustDomain, 1),
    ] {
        assert_eq!(control.audit.refused(refusal), times, "{refusal}");
    }
    let node_identity = "spiffe://cluster.local/nodemesh/node/node-a";
    let refused = sign(&node, node_identity, &csr, 0).await;
    assert_refused(refused, Code::InvalidArgument, "ImpersonatedIdentity");
}

/// Whatever it asks for: what is refused anyhow costs control as well.
#[tokio::test]
async fn a_node_that_asks_too_often_is_refused_and_no_other() {
    let control = Control::start().await;
    let greedy = control.node("node-a").await;
    let (csr, _) = request(|_| ());
    let mut asked = 0;
    let refused = loop {
        let answer = sign(&greedy, WEB, &csr, 0).await;
        asked += 1;
        assert!(asked < 10_000, "{asked} were let in");
        match answer {
            Err(status) if status.code() == Code::PermissionDenied => {}
            other => break other,
        }
    };
    assert_refused(refused, Code::ResourceExhausted, "requests a second");
    assert!(asked > 2_048, "{asked} were let in");
    let modest = control.node("node-b").await;
    sign(&modest, WEB, &csr, 0).await.unwrap();
}

#[tokio::test]
async fn a_request_without_an_identity_is_refused() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let (csr, _) = request(|_| ());
    let asked = mesh_api::ca::IstioCertificateRequest {
        csr,
        ..Default::default()
    };
    let mut client =
        mesh_api::ca::istio_certificate_service_client::IstioCertificateServiceClient::new(node);
    let refused = client.create_certificate(asked).await;
    assert_refused(refused, Code::InvalidArgument, "ImpersonatedIdentity");
}

#[tokio::test]
async fn a_pod_that_has_gone_gets_no_more_certificates() {
    let control = Control::start().await;
    let node = control.node("node-b").await;
    let (csr, _) = request(|_| ());
    sign(&node, WEB, &csr, 0).await.unwrap();
    control.write_manifests(
        "{kind: Namespace, metadata: {name: shop, labels: {nodemesh.dev/enroll: 'true'}}}",
    );
    // The folder is polled: ask until the change is there.
    let refused = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        loop {
            let answer = sign(&node, WEB, &csr, 0).await;
            if answer.is_err() {
                break answer;
            }
        }
    });
    let refused = refused.await.expect("the change is taken");
    assert_refused(refused, Code::PermissionDenied, "no pod of");
}

#[tokio::test]
async fn the_certificate_is_what_openssl_says_an_svid_is() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    // Everything in the request but its key is a wish that is not granted.
    let (csr, _) = request(|params| {
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "nodemesh-control");
        params.subject_alt_names = vec![SanType::URI(CART.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    let chain = sign(&node, CART, &csr, 0).await.unwrap().cert_chain;
    assert_eq!(chain.len(), 3, "leaf, intermediate, root");
    assert_eq!(chain[2], control.pki.root_pem());
    let folder = control.pki.path("");
    control.pki.write("leaf.pem", &chain[0], 0o644);
    control.pki.write("csr.pem", &csr, 0o644);
    let shown = openssl(&folder, "x509 -in leaf.pem -noout -text");
    let shown = String::from_utf8(shown.stdout).unwrap();
    for part in [
        "Public-Key: (256 bit)",
        "X509v3 Subject Alternative Name: critical\n                URI:spiffe://cluster.local/ns/shop/sa/cart\n",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication\n",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
        "Issuer: CN = test intermediate\n",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(shown.contains(part), "{part:?} not in\n{shown}");
    }
    for part in ["nodemesh-control", "Code Signing", "CA:TRUE"] {
        assert!(!shown.contains(part), "{part:?} in\n{shown}");
    }
    for purpose in ["sslserver", "sslclient"] {
        let line = format!(
            "verify -x509_strict -purpose {purpose} -CAfile root.pem -untrusted ca-cert.pem leaf.pem"
        );
        let verified = openssl(&folder, &line);
        assert!(
            verified.status.success(),
            "{}",
            String::from_utf8_lossy(&verified.stderr)
        );
    }
    let of_leaf = openssl(&folder, "x509 -in leaf.pem -noout -pubkey").stdout;
    let of_request = openssl(&folder, "req -in csr.pem -noout -pubkey").stdout;
    assert_eq!(of_leaf, of_request);
}

#[tokio::test]
async fn serials_are_random_and_lifetimes_bounded() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let (csr, _) = request(|_| ());
    let mut serials = std::collections::HashSet::new();
    for (asked, given) in [(0, 3600), (60, 60), (3600, 3600), (999_999, 3600)] {
        let now = mesh_control::now_s();
        let chain = sign(&node, CART, &csr, asked).await.unwrap().cert_chain;
        let leaf = leaf(&chain[0]);
        assert!(
            (now + given..now + given + 30).contains(&leaf.not_after_s),
            "{asked}"
        );
        let begun = now - CLOCK_SKEW_S;
        assert!((begun..begun + 30).contains(&leaf.not_before_s));
        assert_eq!(leaf.serial.len(), 40, "20 bytes of serial");
        assert!(serials.insert(leaf.serial));
    }
    let refused = sign(&node, CART, &csr, -5).await;
    assert_refused(refused, Code::InvalidArgument, "lifetime");
}

#[tokio::test]
async fn no_certificate_outlives_its_issuer() {
    let end = time::OffsetDateTime::now_utc() + time::Duration::minutes(10);
    let pki = Pki::with(|params| params.not_after = end);
    let files = mesh_control::ca::SignerFiles {
        ca_cert: &pki.path("ca-cert.pem"),
        ca_key: &pki.path("ca-key.pem"),
        root: &pki.path("root.pem"),
    };
    let now = mesh_control::now_s();
    let domain = "cluster.local".parse().unwrap();
    let authority = mesh_control::ca::Authority::load(&files, &domain, now).unwrap();
    let (csr, _) = request(|_| ());
    let key = mesh_control::ca::RequestedKey::from_pem(&csr, CART).unwrap();
    let node = "spiffe://cluster.local/nodemesh/node/node-a"
        .parse()
        .unwrap();
    let issued = authority
        .issue_workload(&CART.parse().unwrap(), &node, &key, 0, now)
        .unwrap();
    assert_eq!(issued.leaf.not_after_s, end.unix_timestamp());
    let later = end.unix_timestamp() + 1;
    let refused = authority.issue_workload(&CART.parse().unwrap(), &node, &key, 0, later);
    assert!(refused.unwrap_err().to_string().contains("expired"));
}

#[tokio::test]
async fn requests_with_bad_keys_or_signatures_are_refused() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let folder = control.pki.path("");
    let mut cases = Vec::new();
    for (kind, file) in [
        ("rsa:1024", "rsa1024.csr"),
        ("rsa:2048", "rsa2048.csr"),
        ("ec -pkeyopt ec_paramgen_curve:secp256k1", "k1.csr"),
        ("ec -pkeyopt ec_paramgen_curve:secp224r1", "p224.csr"),
    ] {
        let line = format!("req -new -newkey {kind} -nodes -keyout x.key -subj /CN=x -out {file}");
        let made = openssl(&folder, &line);
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let csr = std::fs::read_to_string(control.pki.path(file)).unwrap();
        cases.push((csr, "P-256 or P-384", Refusal::CsrKey));
    }
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&ed25519)
        .unwrap();
    cases.push((csr.pem().unwrap(), "P-256 or P-384", Refusal::CsrKey));
    // Another key's signature: the last byte of the request is the signature's.
    let (good, _) = request(|_| ());
    let mut der = pem::parse(&good).unwrap().into_contents();
    *der.last_mut().unwrap() ^= 1;
    let spoilt = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der.clone()));
    let what = "signature does not verify";
    cases.push((spoilt, what, Refusal::CsrSignature));
    // The public key of one request under the signature of another.
    *der.last_mut().unwrap() ^= 1;
    let other = pem::parse(request(|_| ()).0).unwrap().into_contents();
    let (from, to) = (public_key(&other), public_key(&der));
    der[to].copy_from_slice(&other[from]);
    let mismatched = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der.clone()));
    cases.push((mismatched, what, Refusal::CsrSignature));
    let cut = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", &der[..der.len() / 2]));
    let longer = [&der[..], &[0]].concat();
    let longer = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", longer));
    let key = pem::encode(&pem::Pem::new("PRIVATE KEY", der));
    for malformed in [String::new(), cut, longer, key] {
        cases.push((malformed, "PKCS#10", Refusal::CsrMalformed));
    }
    let long = format!("{}{}", "x".repeat(20_000), good);
    cases.push((long, "at most 16384", Refusal::CsrTooLong));
    for (csr, part, refusal) in cases {
        let before = control.audit.refused(refusal);
        assert_refused(
            sign(&node, CART, &csr, 0).await,
            Code::InvalidArgument,
            part,
        );
        assert_eq!(control.audit.refused(refusal), before + 1, "{refusal}");
    }
    assert_eq!(control.audit.count(Event::WorkloadSigned), 0);
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&p384)
        .unwrap();
    sign(&node, CART, &csr.pem().unwrap(), 0).await.unwrap();
}

/// Where the bits of a P-256 key are in a request.
fn public_key(der: &[u8]) -> std::ops::Range<usize> {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let (_, request) = X509CertificationRequest::from_der(der).unwrap();
    let spki = &request.certification_request_info.subject_pki;
    let bits = spki.subject_public_key.data.as_ref();
    let at = der.windows(bits.len()).position(|window| window == bits);
    let at = at.unwrap();
    at..at + bits.len()
}

#[tokio::test]
async fn requests_for_more_than_is_granted_are_refused() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let address = || SanType::IpAddress([10, 1, 0, 1].into());
    for names in [
        vec![uri(WEB)],
        vec![uri(CART), uri(WEB)],
        vec![uri(CART), dns("nodemesh-control")],
        vec![uri(CART), uri(CART)],
        vec![address()],
        vec![dns(CART)],
    ] {
        let before = control.audit.refused(Refusal::CsrNames);
        let (csr, _) = request(|params| params.subject_alt_names = names.clone());
        let refused = sign(&node, CART, &csr, 0).await;
        assert_refused(refused, Code::InvalidArgument, "asks for the names");
        assert_eq!(control.audit.refused(Refusal::CsrNames), before + 1);
    }
    let signing = |usages: &[KeyUsagePurpose], is_ca| {
        let (csr, _) = request(|params| {
            params.is_ca = is_ca;
            params.key_usages = usages.to_vec();
        });
        csr
    };
    let ca = || IsCa::Ca(BasicConstraints::Unconstrained);
    for csr in [
        signing(&[], ca()),
        signing(&[KeyUsagePurpose::KeyCertSign], IsCa::NoCa),
        signing(&[KeyUsagePurpose::CrlSign], IsCa::NoCa),
    ] {
        let before = control.audit.refused(Refusal::CsrCa);
        let refused = sign(&node, CART, &csr, 0).await;
        assert_refused(refused, Code::InvalidArgument, "signing certificate");
        assert_eq!(control.audit.refused(Refusal::CsrCa), before + 1);
    }
    assert_eq!(control.audit.count(Event::WorkloadSigned), 0);
    // The one name that is granted anyway, and usages that harm nobody.
    let (csr, _) = request(|params| {
        params.subject_alt_names = vec![uri(CART)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
    });
    sign(&node, CART, &csr, 0).await.unwrap();
}

/// On all nodes together, and before another identity is.
#[tokio::test]
async fn an_identity_that_is_asked_for_too_often_is_refused_and_no_other() {
    let seldom = Rate {
        per_second: 1,
        burst: 3,
    };
    let control = Control::limited(Limits {
        identity: seldom,
        ..Limits::default()
    });
    let control = control.await;
    let node = control.node("node-b").await;
    let (csr, _) = request(|_| ());
    // What a node has no pod of it can't use up.
    for _ in 0..5 {
        let refused = sign(&node, CART, &csr, 0).await;
        assert_refused(refused, Code::PermissionDenied, "no pod of");
    }
    let refused = loop {
        let answer = sign(&node, WEB, &csr, 0).await;
        if answer.is_err() {
            break answer;
        }
        assert!(control.audit.count(Event::WorkloadSigned) < 1_000);
    };
    assert_refused(refused, Code::ResourceExhausted, "requests a second");
    assert!(control.audit.count(Event::WorkloadSigned) >= 3);
    assert_eq!(control.audit.refused(Refusal::RateIdentity), 1);
    let other = control.node("node-a").await;
    sign(&other, CART, &csr, 0).await.unwrap();
}

#[tokio::test]
async fn callers_that_are_no_nodes_get_nothing() {
    let control = Control::start().await;
    let (csr, _) = request(|_| ());
    let none = control.connect(None).await.unwrap();
    assert_refused(
        sign(&none, CART, &csr, 0).await,
        Code::Unauthenticated,
        "client certificate",
    );
    let mut discovery = AggregatedDiscoveryServiceClient::new(none);
    let nothing = tokio_stream::iter(Vec::<DeltaDiscoveryRequest>::new());
    let refused = discovery.delta_aggregated_resources(nothing).await;
    assert_refused(refused, Code::Unauthenticated, "client certificate");

    let control_uri = "spiffe://cluster.local/nodemesh/control";
    let foreign = "spiffe://other/nodemesh/node/node-a";
    for (uri, part) in [
        (CART, "not a node's"),
        (control_uri, "not a node's"),
        (foreign, "trust domain"),
    ] {
        let identity = control.pki.leaf(uri, |_| ());
        let channel = control.connect(Some(&identity)).await.unwrap();
        assert_refused(
            sign(&channel, CART, &csr, 0).await,
            Code::PermissionDenied,
            part,
        );
        let mut discovery = AggregatedDiscoveryServiceClient::new(channel.clone());
        let nothing = tokio_stream::iter(Vec::<DeltaDiscoveryRequest>::new());
        let refused = discovery.delta_aggregated_resources(nothing).await;
        assert_refused(refused, Code::PermissionDenied, part);
        let asked = mesh_api::node::RenewRequest { csr: csr.clone() };
        let mut nodes = mesh_api::node::node_service_client::NodeServiceClient::new(channel);
        assert_refused(nodes.renew(asked).await, Code::PermissionDenied, part);
    }
    assert_eq!(control.audit.count(Event::CallerRefused), 11);
    assert_eq!(control.audit.refused(Refusal::NoCredential), 2);
    assert_eq!(control.audit.refused(Refusal::CertificateNotNode), 9);
}

/// A workload's SVID as this very component issued it, shown as if it were a node's.
#[tokio::test]
async fn an_svid_that_was_issued_here_does_not_pass_as_a_node() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let (csr, key) = request(|_| ());
    let chain = sign(&node, CART, &csr, 0).await.unwrap().cert_chain;
    let svid = support::Identified {
        chain: chain[..2].concat(),
        key,
    };
    let channel = control.connect(Some(&svid)).await.unwrap();
    assert_refused(
        sign(&channel, CART, &csr, 0).await,
        Code::PermissionDenied,
        "not a node's",
    );
}

#[tokio::test]
async fn tls_refuses_certificates_that_prove_nothing() {
    let control = Control::start().await;
    let node = "spiffe://cluster.local/nodemesh/node/node-a";
    let hour = time::Duration::hours(1);
    let now = time::OffsetDateTime::now_utc();
    let foreign = Pki::new();
    let cases = [
        (
            "expired",
            control.pki.leaf(node, |p| p.not_after = now - hour),
        ),
        (
            "not yet valid",
            control.pki.leaf(node, |p| p.not_before = now + hour),
        ),
        (
            "CA",
            control.pki.leaf(node, |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
        ),
        (
            "server only",
            control.pki.leaf(node, |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        ("foreign root", foreign.leaf(node, |_| ())),
    ];
    let (csr, _) = request(|_| ());
    for (what, identity) in cases {
        // In TLS 1.3 the client learns of it with its first read.
        let answer = match control.connect(Some(&identity)).await {
            Ok(channel) => sign(&channel, CART, &csr, 0).await.map(|_| ()),
            Err(_) => continue,
        };
        let status = answer.expect_err(what);
        assert!(
            matches!(status.code(), Code::Unknown | Code::Unavailable),
            "{what}: {status}"
        );
    }
    assert_eq!(control.audit.count(Event::WorkloadSigned), 0);
    // The same leaf, sound, is let in: it is those faults that were refused.
    let sound = control.pki.leaf(node, |_| ());
    let channel = control.connect(Some(&sound)).await.unwrap();
    sign(&channel, CART, &csr, 0).await.unwrap();
}
