//! Certificates that are replaced under tunnels that stand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::StatusCode;
use mesh_api::tunnel::Proof;
use mesh_api::worker::Limits;
use mesh_api::worker::refusal::Outcome;
use mesh_core::reason::Reason;
use rustls::SignatureScheme;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::fault::Direction;
use super::super::proofs;
use super::super::standing::{Binding, EXPORTER};
use super::super::tls::WITH_PROOFS;
use super::harness::{Mesh, Options, TestPod, endpoint, next_ip, within};
use super::peers::{Certificate, PEER, connect, dial_tls_as};
use super::pki::Leaf;
use super::relay::expect_reset;
use super::server::TestServer;

const TAKEN: (&str, &str) = ("nodemesh_tunnel_proofs_total", "taken");

/// A pod whose certificates live for so long.
async fn short_lived(mesh: &Arc<Mesh>, name: &str, life_s: i64) -> TestPod {
    let mut leaf = Leaf::of(&format!("spiffe://cluster.local/ns/test/sa/{name}"));
    leaf.validity_s = (-1, life_s);
    let options = Options {
        leaf: Some(leaf),
        ..Options::default()
    };
    TestPod::start_with(mesh, name, options).await
}

async fn say(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"word").await.unwrap();
    let mut word = [0; 4];
    within("a word", to.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"word");
}

#[tokio::test]
async fn a_flow_outlives_the_certificates_of_both_ends() {
    const LIFE_S: i64 = 4;
    let mesh = Mesh::new();
    let a = short_lived(&mesh, "a", LIFE_S).await;
    let b = short_lived(&mesh, "b", LIFE_S).await;
    let (listener, at) = b.listen(&mesh).await;
    let mut app = a.dial(at).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    let begun = Instant::now();
    let mut proofs = (0, 0);
    // Two lives and more; each side has seen two other certificates than the first.
    while begun.elapsed().as_secs() <= 2 * LIFE_S.unsigned_abs() || proofs < (2, 2) {
        say(&mut app, &mut server).await;
        say(&mut server, &mut app).await;
        proofs = (
            a.count(TAKEN.0, TAKEN.1).await,
            b.count(TAKEN.0, TAKEN.1).await,
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(begun.elapsed() < Duration::from_secs(60), "{proofs:?}");
    }
    let now = super::super::tls::now_s().unsigned_abs();
    for (pod, direction) in [(&a, "outbound"), (&b, "inbound")] {
        let gauge = "nodemesh_tunnel_peer_not_after_seconds";
        assert!(pod.count(gauge, direction).await >= now);
        for outcome in ["cut", "refusals"] {
            let name = format!("nodemesh_{outcome}_{direction}_total");
            assert_eq!(pod.count(&name, Reason::PeerExpired.code()).await, 0);
        }
    }
    // Of all tunnels that were opened meanwhile only the first and the last are left, if at all.
    drop((app, server));
    a.counted("nodemesh_connections_open", "outbound", 0).await;
}

#[tokio::test]
async fn tunnels_of_an_end_that_is_not_renewed_end_with_its_certificate() {
    let mesh = Mesh::new();
    let mut leaf = Leaf::of("spiffe://cluster.local/ns/test/sa/a");
    leaf.validity_s = (-1, 3);
    let options = Options {
        leaf: Some(leaf),
        certificates: 1,
        ..Options::default()
    };
    let a = TestPod::start_with(&mesh, "a", options).await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut app = a.dial(at).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    say(&mut app, &mut server).await;
    expect_reset(&mut app).await;
    expect_reset(&mut server).await;
    // Whichever clock is the first.
    let cut = async {
        loop {
            let own = a
                .count("nodemesh_cut_outbound_total", "no_certificate")
                .await;
            let seen = b.count("nodemesh_cut_inbound_total", "peer_expired").await;
            if own + seen > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the cut", cut).await;
}

#[tokio::test]
async fn a_peer_that_proves_nothing_anew_is_cut_when_its_certificate_ends() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let mut leaf = Leaf::of(PEER);
    leaf.validity_s = (-1, 2);
    // As a server.
    let ip = next_ip();
    let certificate = mesh.pki.issue(&leaf);
    let _server = TestServer::start(&mesh, ip, certificate, |_| {}).await;
    let to = (ip, 1000).into();
    mesh.publish(to, &[endpoint(to, PEER)]);
    let mut app = pod.dial(to).await;
    app.write_all(b"word").await.unwrap();
    within("the echo", app.read_exact(&mut [0; 4]))
        .await
        .unwrap();
    expect_reset(&mut app).await;
    pod.judged(Outcome::Cut, Reason::PeerExpired).await;
    // As a client.
    let (listener, at) = pod.listen(&mesh).await;
    let mut client = Client::dial(&mesh, &pod, mesh.pki.issue(&leaf), b"h2").await;
    let _stream = client.connect(&at.to_string()).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    expect_reset(&mut server).await;
    pod.counted("nodemesh_cut_inbound_total", "peer_expired", 1)
        .await;
}

#[tokio::test]
async fn a_tunnel_whose_peer_cannot_be_shown_the_new_certificate_drains_for_so_long() {
    let mesh = Mesh::new();
    let mut leaf = Leaf::of("spiffe://cluster.local/ns/test/sa/a");
    leaf.validity_s = (-1, 9);
    let options = Options {
        leaf: Some(leaf),
        limits: Limits {
            tunnel_drain_ms: 500,
            ..Limits::default()
        },
        ..Options::default()
    };
    let pod = TestPod::start_with(&mesh, "a", options).await;
    let (listener, at) = pod.listen(&mesh).await;
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let mut client = Client::dial(&mesh, &pod, certificate, b"h2").await;
    let _stream = client.connect(&at.to_string()).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    expect_reset(&mut server).await;
    pod.judged(Outcome::Cut, Reason::TunnelRotated).await;
}

/// A peer that speaks the protocol as it likes.
struct Client {
    sender: SendRequest<Bytes>,
    binding: Binding,
}

impl Client {
    async fn dial(_mesh: &Mesh, pod: &TestPod, certificate: Certificate, protocol: &[u8]) -> Self {
        let dialled = dial_tls_as(pod.hbone(), Some(certificate), protocol).await;
        let tls = dialled.unwrap();
        let connection = tls.get_ref().1;
        let binding = connection
            .export_keying_material(Binding::default(), EXPORTER, None)
            .unwrap();
        let (sender, connection) = h2::client::handshake(tls).await.unwrap();
        tokio::spawn(async move {
            // Ends with the test.
            let _ended = connection.await;
        });
        Self { sender, binding }
    }

    async fn connect(&mut self, to: &str) -> (SendStream<Bytes>, RecvStream) {
        let (answer, send) = self.sender.send_request(connect(to), false).unwrap();
        let answer = within("an answer", answer).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        (send, answer.into_body())
    }

    async fn proofs(&mut self) -> SendStream<Bytes> {
        let request = proofs::request();
        let (answer, send) = self.sender.send_request(request, false).unwrap();
        let answer = within("an answer", answer).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        send
    }
}

fn prove(binding: &Binding, sender: Direction, sequence: u64, (chain, key): &Certificate) -> Proof {
    let chain: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
    let message = proofs::message(binding, sender, sequence, &chain);
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der()).unwrap();
    let signature = key.sign(&SystemRandom::new(), &message).unwrap();
    Proof {
        sequence,
        chain: chain.into_iter().map(<[u8]>::to_vec).collect(),
        scheme: u16::from(SignatureScheme::ECDSA_NISTP256_SHA256).into(),
        signature: signature.as_ref().to_vec(),
    }
}

#[tokio::test]
async fn a_proof_counts_in_its_own_tunnel_once_for_its_own_identity() {
    let mesh = Mesh::new();
    let good = mesh.pki.issue(&Leaf::of(PEER));
    let newer = mesh.pki.issue(&Leaf::of(PEER));
    let other = mesh
        .pki
        .issue(&Leaf::of("spiffe://cluster.local/ns/test/sa/other"));
    let client = Direction::Outbound;
    // What is sent, given the tunnel's own binding and another's.
    type Sent<'a> = &'a dyn Fn(&Binding, &Binding) -> Vec<Proof>;
    let renamed = |binding: &Binding| {
        let mut proof = prove(binding, client, 1, &newer);
        proof.chain[0] = good.0[0].to_vec();
        proof
    };
    let cases: [(&str, Sent<'_>, Option<Reason>); 8] = [
        (
            "good ones",
            &|own, _| vec![prove(own, client, 1, &newer), prove(own, client, 2, &good)],
            None,
        ),
        (
            "another tunnel's",
            &|_, other| vec![prove(other, client, 1, &newer)],
            Some(Reason::PeerProof),
        ),
        (
            "the other end's",
            &|own, _| vec![prove(own, Direction::Inbound, 1, &newer)],
            Some(Reason::PeerProof),
        ),
        (
            "the same again",
            &|own, _| vec![prove(own, client, 1, &newer); 2],
            Some(Reason::PeerProof),
        ),
        (
            "another's certificate",
            &|own, _| vec![renamed(own)],
            Some(Reason::PeerProof),
        ),
        (
            "another identity",
            &|own, _| vec![prove(own, client, 1, &other)],
            Some(Reason::PeerIdentity),
        ),
        (
            "no chain",
            &|_, _| {
                vec![Proof {
                    sequence: 1,
                    ..Proof::default()
                }]
            },
            Some(Reason::PeerNoCertificate),
        ),
        (
            "too many",
            &|own, _| (1..30).map(|n| prove(own, client, n, &newer)).collect(),
            Some(Reason::PeerProof),
        ),
    ];
    for (name, sent, reason) in cases {
        println!("{name}");
        let pod = TestPod::start(&mesh, "b").await;
        let (listener, at) = pod.listen(&mesh).await;
        let certificate = (good.0.clone(), good.1.clone_key());
        let another = Client::dial(
            &mesh,
            &pod,
            (good.0.clone(), good.1.clone_key()),
            WITH_PROOFS,
        )
        .await;
        let mut client = Client::dial(&mesh, &pod, certificate, WITH_PROOFS).await;
        let (mut send, mut receive) = client.connect(&at.to_string()).await;
        let (mut server, _) = within("accept", listener.accept()).await.unwrap();
        let mut proofs = client.proofs().await;
        let all = sent(&client.binding, &another.binding);
        let expected = all.len() as u64;
        for proof in &all {
            // The tunnel may have ended by one before.
            let _sent = proofs.send_data(proofs::framed(proof), false);
        }
        match reason {
            None => {
                pod.counted(TAKEN.0, TAKEN.1, expected).await;
                send.send_data(Bytes::from_static(b"word"), false).unwrap();
                within("bytes", server.read_exact(&mut [0; 4]))
                    .await
                    .unwrap();
                server.write_all(b"back").await.unwrap();
                within("bytes", receive.data()).await.unwrap().unwrap();
            }
            Some(reason) => {
                expect_reset(&mut server).await;
                pod.judged(Outcome::Cut, reason).await;
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_proof_ends_the_tunnel() {
    let mesh = Mesh::new();
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02\xff\xff"] {
        let pod = TestPod::start(&mesh, "b").await;
        let certificate = mesh.pki.issue(&Leaf::of(PEER));
        let mut client = Client::dial(&mesh, &pod, certificate, WITH_PROOFS).await;
        let mut proofs = client.proofs().await;
        proofs.send_data(Bytes::from_static(bytes), false).unwrap();
        pod.judged(Outcome::Cut, Reason::PeerProof).await;
        pod.counted("nodemesh_tunnels_open", "inbound", 0).await;
    }
}

/// A root may reach one end before the other: what is proven under it counts as soon as it is
/// trusted, and until then what was proven before.
#[tokio::test]
async fn a_certificate_under_a_root_that_is_yet_to_come_waits_for_it() {
    use mesh_api::worker::{TrustBundle, to_worker::Message};
    let (mesh, next) = (Mesh::new(), super::pki::Pki::new());
    let pod = TestPod::start(&mesh, "b").await;
    let (listener, at) = pod.listen(&mesh).await;
    let first = mesh.pki.issue(&Leaf::of(PEER));
    let mut client = Client::dial(&mesh, &pod, first, WITH_PROOFS).await;
    let (mut send, _receive) = client.connect(&at.to_string()).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    let mut proofs = client.proofs().await;
    let proof = prove(
        &client.binding,
        Direction::Outbound,
        1,
        &next.issue(&Leaf::of(PEER)),
    );
    proofs.send_data(proofs::framed(&proof), false).unwrap();
    pod.counted(TAKEN.0, "untrusted", 1).await;
    // Only the new root: had the proof been forgotten, this would be the end.
    pod.send(Message::TrustBundle(TrustBundle {
        roots: next.roots(),
        ..TrustBundle::default()
    }));
    pod.counted(TAKEN.0, TAKEN.1, 1).await;
    send.send_data(Bytes::from_static(b"word"), false).unwrap();
    within("bytes", server.read_exact(&mut [0; 4]))
        .await
        .unwrap();
}
