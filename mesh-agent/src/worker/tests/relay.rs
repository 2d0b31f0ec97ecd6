//! Flows through two workers behave as TCP does.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Mesh, TestPod, UNANSWERED_PORT, connect_in_vain, endpoint, next_ip, within};

/// Two pods, a server in the second, a connection from the first.
struct Flow {
    _mesh: Arc<Mesh>,
    a: TestPod,
    b: TestPod,
    client: TcpStream,
    server: TcpStream,
}

async fn flow() -> Flow {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let client = a.dial(at).await;
    let (server, _) = within("the app's accept", listener.accept()).await.unwrap();
    Flow {
        _mesh: mesh,
        a,
        b,
        client,
        server,
    }
}

/// Reading fails with a reset, after what may have come before it.
pub(super) async fn expect_reset(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let error = within("a reset", stream.read_to_end(&mut rest))
        .await
        .expect_err("the end of the stream where a reset was due");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

pub(super) async fn expect_end(stream: &mut TcpStream, expected: &[u8]) {
    let mut all = Vec::new();
    within("the end of the stream", stream.read_to_end(&mut all))
        .await
        .unwrap();
    assert!(all == expected, "{} bytes of {}", all.len(), expected.len());
}

pub(super) async fn fill(stream: &TcpStream) -> usize {
    let block = [7; 64 * 1024];
    let mut written = 0;
    while let Ok(writable) =
        tokio::time::timeout(Duration::from_millis(500), stream.writable()).await
    {
        writable.unwrap();
        written += stream.try_write(&block).unwrap_or(0);
    }
    written
}

#[tokio::test]
async fn bytes_pass_and_the_app_is_told_the_real_client() {
    let mut f = flow().await;
    f.client.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    within("ping", f.server.read_exact(&mut buffer))
        .await
        .unwrap();
    assert_eq!(&buffer, b"ping");
    f.server.write_all(b"pong").await.unwrap();
    within("pong", f.client.read_exact(&mut buffer))
        .await
        .unwrap();
    assert_eq!(&buffer, b"pong");
    let client = f.client.local_addr().unwrap();
    assert_eq!(*f.b.labels.lock().unwrap(), [client]);
    assert!(f.server.peer_addr().unwrap().ip().is_loopback());
    f.a.until("who was seen", |h| !h.tunnels.is_empty()).await;
    f.b.until("who was seen", |h| !h.tunnels.is_empty()).await;
    for (pod, direction, peer) in [(&f.a, "outbound", &f.b), (&f.b, "inbound", &f.a)] {
        let heard = pod.heard.lock().unwrap();
        let tls = "TLSv1_3 TLS13_AES_128_GCM_SHA256 X25519MLKEM768".to_owned();
        assert_eq!(
            heard.tunnels,
            [(direction.to_owned(), peer.identity.clone(), tls)]
        );
    }
    f.b.counted("nodemesh_unknown_peers_total", "", 1).await;
}

#[tokio::test]
async fn either_end_may_close_its_half_and_still_read() {
    for client_first in [true, false] {
        let f = flow().await;
        let (mut first, mut second) = (f.client, f.server);
        if !client_first {
            std::mem::swap(&mut first, &mut second);
        }
        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        expect_end(&mut second, b"question").await;
        let answer = vec![9; 3_000_000];
        let (sent, ()) = tokio::join!(second.write_all(&answer), async {
            let mut received = vec![0; answer.len()];
            within("the answer", first.read_exact(&mut received))
                .await
                .unwrap();
            assert!(received == answer);
        });
        sent.unwrap();
        second.shutdown().await.unwrap();
        expect_end(&mut first, b"").await;
        f.a.counted("nodemesh_connections_open", "outbound", 0)
            .await;
        f.b.counted("nodemesh_connections_open", "inbound", 0).await;
        assert!(f.a.heard.lock().unwrap().refusals.is_empty());
    }
}

#[tokio::test]
async fn a_connection_without_a_byte_ends_as_it_began() {
    let mut f = flow().await;
    f.client.shutdown().await.unwrap();
    expect_end(&mut f.server, b"").await;
    f.server.shutdown().await.unwrap();
    expect_end(&mut f.client, b"").await;
}

#[tokio::test]
async fn a_reset_of_either_end_reaches_the_other() {
    for client_resets in [true, false] {
        let f = flow().await;
        let (resets, mut other) = if client_resets {
            (f.client, f.server)
        } else {
            (f.server, f.client)
        };
        resets.set_zero_linger().unwrap();
        drop(resets);
        expect_reset(&mut other).await;
        f.a.counted("nodemesh_connections_open", "outbound", 0)
            .await;
        f.b.counted("nodemesh_connections_open", "inbound", 0).await;
    }
}

#[tokio::test]
async fn data_sent_before_a_reset_arrives_before_it() {
    for client_resets in [true, false] {
        let f = flow().await;
        let (mut resets, mut other) = if client_resets {
            (f.client, f.server)
        } else {
            (f.server, f.client)
        };
        resets.write_all(b"last words").await.unwrap();
        // The peer has them: only then can what follows overtake nothing.
        within("last words", other.peek(&mut [0; 10]))
            .await
            .unwrap();
        resets.set_zero_linger().unwrap();
        drop(resets);
        let mut words = [0; 10];
        within("last words", other.read_exact(&mut words))
            .await
            .unwrap();
        assert_eq!(&words, b"last words");
        expect_reset(&mut other).await;
    }
}

#[tokio::test]
async fn a_reset_passes_while_nobody_reads() {
    for client_resets in [true, false] {
        let f = flow().await;
        let (resets, mut other) = if client_resets {
            (f.client, f.server)
        } else {
            (f.server, f.client)
        };
        // Full in both directions: no read and no write is under way in the workers.
        let (one, two) = tokio::join!(fill(&resets), fill(&other));
        assert!(one > 1 << 20 && two > 1 << 20);
        resets.set_zero_linger().unwrap();
        drop(resets);
        f.a.counted("nodemesh_connections_open", "outbound", 0)
            .await;
        f.b.counted("nodemesh_connections_open", "inbound", 0).await;
        expect_reset(&mut other).await;
    }
}

#[tokio::test]
async fn an_app_that_closes_while_the_other_still_sends_resets_it() {
    let mut f = flow().await;
    drop(f.server);
    let block = vec![1; 1 << 20];
    let failed = within("a write that fails", async {
        loop {
            if let Err(error) = f.client.write_all(&block).await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(
        failed.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    ));
}

#[tokio::test]
async fn what_discovery_does_not_give_is_refused_with_the_reason() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let somewhere = |port| (next_ip(), port).into();
    let plain = somewhere(80);
    let mut outside = endpoint(plain, &a.identity);
    outside.hbone = false;
    mesh.publish(plain, &[outside]);
    let empty = somewhere(80);
    mesh.publish(empty, &[]);
    let nobody_there = somewhere(80);
    mesh.publish(nobody_there, &[endpoint(nobody_there, &a.identity)]);
    for (to, reason) in [
        (somewhere(80), Reason::DestinationUnknown),
        (plain, Reason::DestinationNotEnrolled),
        (empty, Reason::NoEndpoint),
        (nobody_there, Reason::TunnelConnect),
        (somewhere(UNANSWERED_PORT), Reason::DiscoveryTimeout),
        ((a.ip, 15008).into(), Reason::OriginalDestinationUnknown),
    ] {
        a.heard.lock().unwrap().refusals.clear();
        a.dial_in_vain(to).await;
        a.refused("outbound", reason, 1).await;
        a.until("the refusal", |h| !h.refusals.is_empty()).await;
        let heard = a.heard.lock().unwrap();
        assert_eq!(heard.refusals[0].reason, reason.code());
        let source = &heard.refusals[0].source;
        assert!(source.starts_with(&format!("{}:", a.ip)), "{source}");
    }
    // One question each, however the answer was.
    let asked = a.heard.lock().unwrap().asked.clone();
    assert_eq!(asked.len(), 5, "{asked:?}");
}

#[tokio::test]
async fn a_dead_app_port_resets_the_client() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    drop(listener);
    a.dial_in_vain(at).await;
    a.refused("outbound", Reason::TunnelRefused, 1).await;
    b.refused("inbound", Reason::AppConnect, 1).await;
    let heard = b.heard.lock().unwrap();
    assert_eq!(heard.refusals[0].peer_identity, a.identity);
}

#[tokio::test]
async fn plaintext_from_outside_is_reset_and_named() {
    let mesh = Mesh::new();
    let b = TestPod::start(&mesh, "b").await;
    connect_in_vain((b.ip, 15006).into()).await;
    b.refused("inbound", Reason::InboundPlaintext, 1).await;
    b.until("the refusal", |h| !h.refusals.is_empty()).await;
    let heard = b.heard.lock().unwrap();
    assert_eq!(heard.refusals[0].destination, format!("{}:15006", b.ip));
    assert!(heard.refusals[0].source.starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn the_pods_own_address_is_dialled_directly() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let listener = TcpListener::bind((a.ip, 0)).await.unwrap();
    let mut client = a.dial(listener.local_addr().unwrap()).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    assert_eq!(*a.labels.lock().unwrap(), [client.local_addr().unwrap()]);
    let block: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let (sent, ()) = tokio::join!(
        async {
            client.write_all(&block).await.unwrap();
            client.shutdown().await
        },
        expect_end(&mut server, &block)
    );
    sent.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    expect_reset(&mut client).await;
    assert_eq!(a.count("nodemesh_tunnels_open", "outbound").await, 0);
    assert!(a.heard.lock().unwrap().asked.is_empty());
}
