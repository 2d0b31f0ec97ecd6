//! A worker within its budget: what is beyond it is refused for its reason, what stands goes on,
//! and other limits hold at once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::worker::{Limits, to_worker};
use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Mesh, Options, TestPod, connect_in_vain, within};
use super::relay::{expect_reset, fill};

const REFUSED: [&str; 2] = [
    "nodemesh_refusals_inbound_total",
    "nodemesh_refusals_outbound_total",
];

fn with(limits: Limits) -> Options {
    Options {
        limits,
        ..Options::default()
    }
}

/// A flow from one pod to the other, with bytes through it.
async fn flow(from: &TestPod, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = from.dial(listener.local_addr().unwrap()).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    ping(&mut client, &mut server).await;
    (client, server)
}

async fn ping(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    within("ping", server.read_exact(&mut [0; 4]))
        .await
        .unwrap();
}

/// So many connections in a row that nobody serves; each ends one way or the other.
async fn churn(to: std::net::SocketAddr, count: usize) {
    for _ in 0..count {
        drop(TcpStream::connect(to).await);
    }
}

#[tokio::test]
async fn connections_beyond_the_rate_are_refused_and_what_stands_goes_on() {
    let mesh = Mesh::new();
    let limits = Limits {
        connections_per_second: 5,
        ..Limits::default()
    };
    let a = TestPod::start_with(&mesh, "a", with(limits)).await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, _) = b.listen(&mesh).await;
    let (mut client, mut server) = flow(&a, &listener).await;
    let began = Instant::now();
    churn((a.ip, 15001).into(), 60).await;
    ping(&mut client, &mut server).await;
    // Whatever the churn, no more than the rate was let in, and the rest was not all taken.
    let let_in = a.count("nodemesh_connections_total", "outbound").await;
    let refused = a.count(REFUSED[1], Reason::ConnectionRate.code()).await;
    let most = 6 + 5 * (began.elapsed().as_secs() + 1);
    assert!((1..=most).contains(&let_in), "{let_in} of {most}");
    assert!((1..=most).contains(&refused), "{refused} of {most}");
    assert!(a.count("nodemesh_accept_rests_total", "").await > 0);
    // Tunnels' port and plaintext have a rate of their own.
    assert_eq!(a.count(REFUSED[0], Reason::ConnectionRate.code()).await, 0);
    a.send(to_worker::Message::Limits(Limits::default()));
    // The queue is worked off, and whoever comes is served again.
    within("the queue to be worked off", async {
        let mut done = 0;
        while done < 61 {
            done = a.count("nodemesh_connections_total", "outbound").await
                + a.count(REFUSED[1], Reason::ConnectionRate.code()).await;
        }
    })
    .await;
    let (mut late, mut server) = flow(&a, &listener).await;
    ping(&mut late, &mut server).await;
}

#[tokio::test]
async fn handshakes_beyond_the_rate_are_refused() {
    let mesh = Mesh::new();
    let limits = Limits {
        handshakes_per_second: 2,
        ..Limits::default()
    };
    let b = TestPod::start_with(&mesh, "b", with(limits)).await;
    let a = TestPod::start(&mesh, "a").await;
    let (listener, _) = b.listen(&mesh).await;
    let (mut client, mut server) = flow(&a, &listener).await;
    churn(b.hbone(), 30).await;
    within("a refusal", async {
        while b.count(REFUSED[0], Reason::HandshakeRate.code()).await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    ping(&mut client, &mut server).await;
    // A tunnel that stands takes streams.
    flow(&a, &listener).await;
}

#[tokio::test]
async fn tunnels_beyond_the_limit_are_refused_by_their_server() {
    let mesh = Mesh::new();
    let limits = Limits {
        tunnels: 1,
        ..Limits::default()
    };
    let b = TestPod::start_with(&mesh, "b", with(limits)).await;
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let (listener, at) = b.listen(&mesh).await;
    let (mut client, mut server) = flow(&a, &listener).await;
    connect_in_vain(b.hbone()).await;
    b.refused("inbound", Reason::TunnelLimit, 1).await;
    c.dial_in_vain(at).await;
    ping(&mut client, &mut server).await;
    b.send(to_worker::Message::Limits(Limits::default()));
    // Messages are taken in order: what is answered after it is after it.
    assert_eq!(b.count("nodemesh_tunnels_open", "inbound").await, 1);
    flow(&c, &listener).await;
}

/// A pod with these limits, and two without.
async fn limited_and_two(mesh: &Arc<Mesh>, limits: Limits) -> (TestPod, TestPod, TestPod) {
    let a = TestPod::start_with(mesh, "a", with(limits)).await;
    let b = TestPod::start(mesh, "b").await;
    (a, b, TestPod::start(mesh, "c").await)
}

#[tokio::test]
async fn streams_gather_in_one_tunnel_and_others_come_to_rest() {
    let mesh = Mesh::new();
    let limits = Limits {
        tunnels: 2,
        streams_per_tunnel: 2,
        ..Limits::default()
    };
    let (a, b, c) = limited_and_two(&mesh, limits).await;
    let (to_b, _) = b.listen(&mesh).await;
    let (to_c, _) = c.listen(&mesh).await;
    let burst = (flow(&a, &to_b).await, flow(&a, &to_b).await);
    let _alone_in_the_second = flow(&a, &to_b).await;
    a.counted("nodemesh_tunnels_open", "outbound", 2).await;
    drop(burst);
    a.counted("nodemesh_connections_open", "outbound", 1).await;
    let _beside_it = flow(&a, &to_b).await;
    // The first has none, and makes room.
    flow(&a, &to_c).await;
}

#[tokio::test]
async fn a_client_makes_room_for_a_tunnel_by_one_that_is_idle() {
    let mesh = Mesh::new();
    let limits = Limits {
        tunnels: 1,
        ..Limits::default()
    };
    let (a, b, c) = limited_and_two(&mesh, limits).await;
    let (to_b, _) = b.listen(&mesh).await;
    let (to_c, at_c) = c.listen(&mesh).await;
    let held = flow(&a, &to_b).await;
    a.dial_in_vain(at_c).await;
    a.refused("outbound", Reason::TunnelLimit, 1).await;
    drop(held);
    a.counted("nodemesh_connections_open", "outbound", 0).await;
    flow(&a, &to_c).await;
    a.counted("nodemesh_tunnels_open", "outbound", 1).await;
}

#[tokio::test]
async fn callers_streams_have_a_limit_of_their_own() {
    let mesh = Mesh::new();
    let limits = Limits {
        streams: 2,
        connections: 3,
        ..Limits::default()
    };
    let b = TestPod::start_with(&mesh, "b", with(limits)).await;
    let a = TestPod::start(&mesh, "a").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut held = vec![flow(&a, &listener).await, flow(&a, &listener).await];
    a.dial_in_vain(at).await;
    b.refused("inbound", Reason::StreamLimit, 1).await;
    // What callers can't take is left to the app's own connections.
    let (to_a, _) = a.listen(&mesh).await;
    let _own = flow(&b, &to_a).await;
    held.pop();
    b.counted("nodemesh_streams_open", "inbound", 1).await;
    held.push(flow(&a, &listener).await);
}

/// The `memory.current` that a worker is given, written by the test.
struct MemoryUsed(File);

impl MemoryUsed {
    fn new() -> (Self, Options) {
        let file = tempfile::tempfile().unwrap();
        let options = Options {
            limits: Limits {
                memory_max_mib: 100,
                ..Limits::default()
            },
            memory_used: Some(file.try_clone().unwrap().into()),
            ..Options::default()
        };
        let used = Self(file);
        used.set(8);
        (used, options)
    }

    fn set(&self, mib: u64) {
        let text = format!("{:<20}\n", mib << 20);
        self.0.write_all_at(text.as_bytes(), 0).unwrap();
    }
}

#[tokio::test]
async fn short_of_memory_a_worker_refuses_first_connections_then_streams_then_resets_who_does_not_read()
 {
    let mesh = Mesh::new();
    let (used, options) = MemoryUsed::new();
    let b = TestPod::start_with(&mesh, "b", options).await;
    let a = TestPod::start(&mesh, "a").await;
    let (listener, at) = b.listen(&mesh).await;
    let (to_a, _) = a.listen(&mesh).await;
    let (mut client, mut server) = flow(&a, &listener).await;
    // The app at `b` does not read this one.
    let (mut stalled, _unread) = flow(&a, &listener).await;
    Box::pin(fill(&stalled)).await;
    let short = Reason::MemoryPressure.code();

    used.set(75);
    tokio::time::sleep(Duration::from_millis(50)).await;
    b.dial_in_vain(to_a.local_addr().unwrap()).await;
    b.counted(REFUSED[1], short, 1).await;
    connect_in_vain(b.hbone()).await;
    b.counted(REFUSED[0], short, 1).await;
    let _more = flow(&a, &listener).await;

    used.set(85);
    tokio::time::sleep(Duration::from_millis(50)).await;
    a.dial_in_vain(at).await;
    b.counted(REFUSED[0], short, 2).await;
    let cut = "nodemesh_cut_inbound_total";
    assert_eq!(b.count(cut, Reason::NotReading.code()).await, 0);

    used.set(95);
    b.counted(cut, Reason::NotReading.code(), 1).await;
    expect_reset(&mut stalled).await;
    ping(&mut client, &mut server).await;

    used.set(8);
    tokio::time::sleep(Duration::from_millis(50)).await;
    flow(&a, &listener).await;
    flow(&b, &to_a).await;
}
