//! Who is let in and who is believed: every wrong certificate, in each direction, with the
//! exact reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::worker::Limits;
use mesh_core::reason::Reason;
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{
    Mesh, Options, TRUST_DOMAIN, TestPod, connect_in_vain, endpoint, next_ip, within,
};
use super::peers::dial_tls;
use super::pki::{Leaf, Pki};
use super::relay::expect_reset;
use super::server::TestServer;

const PEER: &str = "spiffe://cluster.local/ns/test/sa/peer";

/// Every wrong leaf of a peer, and what it is refused for.
fn wrong_leaves() -> Vec<(&'static str, Leaf, Reason)> {
    let good = Leaf::of(PEER);
    let with = |change: fn(&mut Leaf)| {
        let mut leaf = good.clone();
        change(&mut leaf);
        leaf
    };
    vec![
        (
            "expired",
            with(|l| l.validity_s = (-7200, -60)),
            Reason::PeerExpired,
        ),
        (
            "not yet valid",
            with(|l| l.validity_s = (600, 7200)),
            Reason::PeerExpired,
        ),
        ("CA:TRUE", with(|l| l.is_ca = true), Reason::PeerIsCa),
        (
            "keyCertSign",
            with(|l| l.usages.push(KeyUsagePurpose::KeyCertSign)),
            Reason::PeerIsCa,
        ),
        (
            "another trust domain",
            with(|l| l.uris = vec!["spiffe://other.example/ns/test/sa/peer".to_owned()]),
            Reason::PeerTrustDomain,
        ),
        ("no URI", with(|l| l.uris.clear()), Reason::PeerNoIdentity),
        (
            "two URIs",
            with(|l| {
                l.uris
                    .push("spiffe://cluster.local/ns/test/sa/b".to_owned());
            }),
            Reason::PeerNoIdentity,
        ),
        (
            "a node's identity",
            with(|l| l.uris = vec![format!("spiffe://{TRUST_DOMAIN}/nodemesh/node/n")]),
            Reason::PeerNoIdentity,
        ),
        ("no EKU", with(|l| l.purposes.clear()), Reason::PeerKeyUsage),
        (
            "no digitalSignature",
            with(|l| l.usages = vec![KeyUsagePurpose::KeyAgreement]),
            Reason::PeerKeyUsage,
        ),
    ]
}

#[tokio::test]
async fn a_client_with_a_wrong_certificate_is_refused() {
    let mesh = Mesh::new();
    let foreign = Pki::new();
    let mut cases = wrong_leaves();
    let mut server_only = Leaf::of(PEER);
    server_only.purposes = vec![ExtendedKeyUsagePurpose::ServerAuth];
    cases.push(("only serverAuth", server_only, Reason::PeerKeyUsage));
    let mut cases: Vec<_> = cases
        .into_iter()
        .map(|(name, leaf, reason)| (name, Some(mesh.pki.issue(&leaf)), reason))
        .collect();
    let stranger = foreign.issue(&Leaf::of(PEER));
    cases.push(("foreign root", Some(stranger), Reason::PeerUntrusted));
    cases.push(("no certificate", None, Reason::PeerNoCertificate));
    for (name, certificate, reason) in cases {
        println!("{name}");
        let pod = TestPod::start(&mesh, "b").await;
        // The client's half of a TLS 1.3 handshake may well succeed; it is cut right after.
        if let Ok(mut stream) = dial_tls(pod.hbone(), certificate).await {
            let mut byte = [0];
            let read = within("the cut", stream.read(&mut byte)).await;
            let alert = read.expect_err("bytes from a server that must not believe us");
            assert!(alert.to_string().contains("alert"), "{name}: {alert}");
        }
        pod.refused("inbound", reason, 1).await;
        let label = reason.code();
        let failures = "nodemesh_handshake_failures_inbound_total";
        assert_eq!(pod.count(failures, label).await, 1, "{name}");
        assert_eq!(pod.count("nodemesh_handshakes_total", "inbound").await, 0);
    }
}

#[tokio::test]
async fn a_server_with_a_wrong_certificate_is_refused() {
    let mesh = Mesh::new();
    let foreign = Pki::new();
    let mut cases = wrong_leaves();
    let mut client_only = Leaf::of(PEER);
    client_only.purposes = vec![ExtendedKeyUsagePurpose::ClientAuth];
    cases.push(("only clientAuth", client_only, Reason::PeerKeyUsage));
    let other = Leaf::of("spiffe://cluster.local/ns/test/sa/other");
    cases.push(("another identity", other, Reason::PeerIdentity));
    let mut cases: Vec<_> = cases
        .into_iter()
        .map(|(name, leaf, reason)| (name, mesh.pki.issue(&leaf), reason))
        .collect();
    let stranger = foreign.issue(&Leaf::of(PEER));
    cases.push(("foreign root", stranger, Reason::PeerUntrusted));
    for (name, certificate, reason) in cases {
        println!("{name}");
        let pod = TestPod::start(&mesh, "a").await;
        let ip = next_ip();
        let server = TestServer::start(&mesh, ip, certificate, |_| {}).await;
        let to = SocketAddr::new(ip, 80);
        mesh.publish(to, &[endpoint(to, PEER)]);
        let mut app = pod.dial(to).await;
        app.write_all(b"secret").await.unwrap();
        expect_reset(&mut app).await;
        pod.refused("outbound", reason, 1).await;
        let failures = "nodemesh_handshake_failures_outbound_total";
        assert_eq!(pod.count(failures, reason.code()).await, 1, "{name}");
        // Not even the handshake was completed: our certificate was not shown.
        assert_eq!(server.handshakes(), 0, "{name}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_us_is_told_apart() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let ip = next_ip();
    let (chain, key) = mesh.pki.issue(&Leaf::of(PEER));
    // It trusts other roots than ours.
    let others = Mesh::new();
    let _server = TestServer::start(&others, ip, (chain, key), |_| {}).await;
    let to = SocketAddr::new(ip, 80);
    mesh.publish(to, &[endpoint(to, PEER)]);
    a.dial_in_vain(to).await;
    a.refused("outbound", Reason::TunnelTls, 1).await;
    a.until("the refusal", |h| !h.refusals.is_empty()).await;
    let heard = a.heard.lock().unwrap();
    assert!(
        heard.refusals[0].detail.contains("fatal alert"),
        "{:?}",
        heard.refusals
    );
}

fn limits(handshakes: u32, timeout_ms: u32) -> Options {
    Options {
        limits: Limits {
            handshakes,
            handshake_timeout_ms: timeout_ms,
            ..Limits::default()
        },
        ..Options::default()
    }
}

#[tokio::test]
async fn a_handshake_that_is_not_done_in_time_is_dropped() {
    let mesh = Mesh::new();
    let pod = TestPod::start_with(&mesh, "b", limits(0, 300)).await;
    let started = Instant::now();
    let mut silent = TcpStream::connect(pod.hbone()).await.unwrap();
    // One that has begun: a record header that promises more.
    let mut begun = TcpStream::connect(pod.hbone()).await.unwrap();
    begun.write_all(&[22, 3, 1, 1, 0, 1]).await.unwrap();
    // One that is through with TLS and silent then.
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let mut quiet = dial_tls(pod.hbone(), Some(certificate)).await.unwrap();
    for stream in [&mut silent, &mut begun] {
        let mut rest = Vec::new();
        // Closed one way or the other.
        let _ = within("the drop", stream.read_to_end(&mut rest)).await;
    }
    let mut rest = Vec::new();
    let _ = within("the drop", quiet.read_to_end(&mut rest)).await;
    assert!(started.elapsed() >= Duration::from_millis(300));
    pod.refused("inbound", Reason::HandshakeTimeout, 3).await;
}

#[tokio::test]
async fn handshakes_beyond_the_limit_are_refused_at_once() {
    let mesh = Mesh::new();
    let pod = TestPod::start_with(&mesh, "b", limits(2, 0)).await;
    let first = TcpStream::connect(pod.hbone()).await.unwrap();
    let _second = TcpStream::connect(pod.hbone()).await.unwrap();
    connect_in_vain(pod.hbone()).await;
    pod.refused("inbound", Reason::HandshakeLimit, 1).await;
    // A place that is given up is a place again.
    drop(first);
    pod.counted(
        "nodemesh_refusals_inbound_total",
        Reason::TunnelTls.code(),
        1,
    )
    .await;
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    dial_tls(pod.hbone(), Some(certificate)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let mesh = Mesh::new();
    let pod = TestPod::start_with(&mesh, "a", limits(0, 300)).await;
    let ip = next_ip();
    let _silent = tokio::net::TcpListener::bind((ip, 15008)).await.unwrap();
    let to = SocketAddr::new(ip, 80);
    mesh.publish(to, &[endpoint(to, PEER)]);
    pod.dial_in_vain(to).await;
    pod.refused("outbound", Reason::HandshakeTimeout, 1).await;
}

#[tokio::test]
async fn flows_of_an_expired_worker_are_refused() {
    let mesh: Arc<Mesh> = Mesh::new();
    let mut leaf = Leaf::of("spiffe://cluster.local/ns/test/sa/a");
    leaf.validity_s = (-3600, 2);
    let options = Options {
        leaf: Some(leaf),
        certificates: 1,
        ..Options::default()
    };
    let pod = TestPod::start_with(&mesh, "a", options).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let to = SocketAddr::new(next_ip(), 80);
    mesh.publish(to, &[endpoint(to, PEER)]);
    pod.dial_in_vain(to).await;
    pod.refused("outbound", Reason::NoCertificate, 1).await;
    let mut caller = TcpStream::connect(pod.hbone()).await.unwrap();
    let mut rest = Vec::new();
    let _ = within("the drop", caller.read_to_end(&mut rest)).await;
    pod.refused("inbound", Reason::NoCertificate, 1).await;
}
