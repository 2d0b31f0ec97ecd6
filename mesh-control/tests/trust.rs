//! What nodes are told to trust and of what is revoked, and what becomes of a node that is.

mod support;

use std::time::Duration;

use mesh_api::trust::trust_service_client::TrustServiceClient;
use mesh_api::trust::{FollowRequest, Revocations, Trust};
use mesh_control::audit::Event;
use mesh_core::certificate::Leaf;
use mesh_core::revocation::CertificateId;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::pki::Pki;
use support::subscriber::{Subscriber, subscribe};
use support::{CART, Control, MANIFESTS, WEB, assert_refused, request, sign};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

fn der(pem: &str) -> Vec<u8> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    der.to_vec()
}

fn with(revocation: &str) -> String {
    format!(
        "{MANIFESTS}---\napiVersion: nodemesh.dev/v1alpha1\nkind: Revocation\n\
         metadata: {{name: r, namespace: nodemesh-system}}\nspec: {revocation}\n"
    )
}

async fn follow(channel: &Channel) -> Result<Streaming<Trust>, Status> {
    let mut client = TrustServiceClient::new(channel.clone());
    Ok(client.follow(FollowRequest {}).await?.into_inner())
}

async fn next(stream: &mut Streaming<Trust>) -> Result<Trust, Status> {
    let next = timeout(PATIENCE, stream.message()).await;
    next.expect("a message in time").transpose().unwrap()
}

fn revocations(trust: &Trust) -> &Revocations {
    trust.revocations.as_ref().unwrap()
}

#[tokio::test]
async fn nodes_are_told_of_every_change_and_nothing_twice() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = follow(&node).await.unwrap();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(first.roots, [der(control.pki.root_pem())]);
    assert_eq!(*revocations(&first), Revocations::default());
    control.write_manifests(&with(&format!("{{identities: [{WEB}]}}")));
    let second = next(&mut stream).await.unwrap();
    assert_eq!(revocations(&second).identities, [WEB]);
    assert_ne!(first.version, second.version);
    // Something else changes, and then it is taken back.
    control.write_manifests(
        &with(&format!("{{identities: [{WEB}]}}")).replace("10.1.0.3", "10.1.0.4"),
    );
    control.write_manifests(MANIFESTS);
    let third = next(&mut stream).await.unwrap();
    assert_eq!(third, first);
}

#[tokio::test]
async fn who_is_no_node_is_told_nothing() {
    let control = Control::start().await;
    let anonymous = control.connect(None).await.unwrap();
    assert_refused(
        follow(&anonymous).await,
        Code::Unauthenticated,
        "join first",
    );
    let workload = control.pki.leaf(CART, |_| ());
    let workload = control.connect(Some(&workload)).await.unwrap();
    assert_refused(
        follow(&workload).await,
        Code::PermissionDenied,
        "not a node",
    );
}

#[tokio::test]
async fn a_revoked_node_loses_its_streams_and_is_answered_nothing() {
    let control = Control::start().await;
    let (a, b) = (control.node("node-a").await, control.node("node-b").await);
    let (mut of_a, mut of_b) = (follow(&a).await.unwrap(), follow(&b).await.unwrap());
    next(&mut of_a).await.unwrap();
    next(&mut of_b).await.unwrap();
    let mut discovery = Subscriber::open(&a, subscribe(&["*"])).await;
    discovery.next().await.unwrap();
    control.write_manifests(&with("{nodes: [node-a]}"));
    // It may hear of its own revocation first.
    let ended = loop {
        if let Err(status) = next(&mut of_a).await {
            break status;
        }
    };
    assert_refused(
        Err::<(), _>(ended),
        Code::PermissionDenied,
        "node-a is revoked",
    );
    let ended = loop {
        if let Err(status) = discovery.next().await {
            break status;
        }
    };
    assert_refused(
        Err::<(), _>(ended),
        Code::PermissionDenied,
        "node-a is revoked",
    );
    let (csr, _) = request(|_| ());
    let refused = sign(&a, CART, &csr, 0).await;
    assert_refused(refused, Code::PermissionDenied, "node-a is revoked");
    assert!(control.audit.count(Event::CallerRefused) >= 3);
    // The other one goes on, and knows by what to tell the certificates of the revoked one.
    let told = next(&mut of_b).await.unwrap();
    let mark = mesh_control::trust::node_mark("node-a");
    assert_eq!(revocations(&told).marks, [mark.to_vec()]);
    sign(&b, WEB, &csr, 0).await.unwrap();
}

#[tokio::test]
async fn what_chains_to_a_revoked_intermediate_is_answered_nothing() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = follow(&node).await.unwrap();
    next(&mut stream).await.unwrap();
    let intermediate = CertificateId::from_der(&der(control.pki.ca_pem())).unwrap();
    let serial: String = intermediate
        .serial
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    control.write_manifests(&with(&format!("{{serials: [\"{serial}\"]}}")));
    let ended = loop {
        if let Err(status) = next(&mut stream).await {
            break status;
        }
    };
    let words = format!("{serial} is revoked");
    assert_refused(Err::<(), _>(ended), Code::PermissionDenied, &words);
    let (csr, _) = request(|_| ());
    let refused = sign(&node, CART, &csr, 0).await;
    assert_refused(refused, Code::PermissionDenied, &words);
}

#[tokio::test]
async fn all_certificates_of_a_node_bear_its_mark() {
    let control = Control::start().await;
    let marked = |pem: &str, node: &str| {
        let leaf = Leaf::from_der(&der(pem)).unwrap();
        assert!(
            leaf.id
                .serial
                .starts_with(&mesh_control::trust::node_mark(node))
        );
    };
    for (name, identity) in [("node-a", CART), ("node-b", WEB)] {
        let (certificate, _) = control.join(&control.token(name), name).await.unwrap();
        marked(&certificate.cert_chain[0], name);
        let (csr, _) = request(|_| ());
        let signed = sign(&control.node(name).await, identity, &csr, 0).await;
        marked(&signed.unwrap().cert_chain[0], name);
    }
}

#[tokio::test]
async fn a_revoked_identity_gets_no_certificate() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = follow(&node).await.unwrap();
    next(&mut stream).await.unwrap();
    let (csr, _) = request(|_| ());
    sign(&node, CART, &csr, 0).await.unwrap();
    control.write_manifests(&with(&format!("{{identities: [{CART}]}}")));
    next(&mut stream).await.unwrap();
    let refused = sign(&node, CART, &csr, 0).await;
    assert_refused(refused, Code::PermissionDenied, "is revoked");
    assert_eq!(control.audit.count(Event::WorkloadRefused), 1);
}

#[tokio::test]
async fn what_a_list_of_the_root_lists_is_told_and_followed() {
    let pki = Pki::new();
    let intermediate = CertificateId::from_der(&der(pki.ca_pem())).unwrap();
    pki.write("list.crl", &pki.list(&[&[7]], |_| ()), 0o644);
    let control = Control::start_on(pki).await;
    let node = control.node("node-a").await;
    let mut stream = follow(&node).await.unwrap();
    let told = next(&mut stream).await.unwrap();
    let [listed] = revocations(&told).listed.as_slice() else {
        panic!("{told:?}");
    };
    assert_eq!(
        (&listed.issuer, listed.serials.as_slice()),
        (&intermediate.issuer, [vec![7]].as_slice())
    );
    let pki = &control.pki;
    pki.write("list.crl", &pki.list(&[&[7], &[0x80, 9]], |_| ()), 0o644);
    let told = next(&mut stream).await.unwrap();
    assert_eq!(
        revocations(&told).listed[0].serials,
        [vec![7], vec![0x80, 9]]
    );
}
