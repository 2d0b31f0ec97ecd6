//! What a client sees of endpoints that fail, each in its own way, and how long it takes.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_api::policy::{OutlierDetection, Traffic, traffic::Balancing};
use mesh_api::worker::Limits;
use mesh_core::reason::Reason;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::harness::{Mesh, Options, TestPod, endpoint, next_ip, within};
use super::peers::PEER;
use super::pki::Leaf;
use super::pool::serve_echo;
use super::server::{BREAKING_ONCE_PORT, BREAKING_PORT, FORBIDDEN_PORT, TestServer};

/// One after the other, so that a test knows who is tried first; nobody is ejected.
pub(super) fn round_robin() -> Traffic {
    Traffic {
        balancing: Balancing::RoundRobin.into(),
        outliers: Some(OutlierDetection::default()),
        ..Traffic::default()
    }
}

/// A call of the app of `pod`: connects, sends, gets it back. Returns how long that took.
pub(super) async fn call(pod: &TestPod, to: SocketAddr) -> Duration {
    let start = Instant::now();
    let mut app = pod.dial(to).await;
    app.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    within("the echo", app.read_exact(&mut back)).await.unwrap();
    start.elapsed()
}

/// A worker whose thread stands still from the next flow to its app on, as with SIGSTOP: the
/// kernel goes on to accept and acknowledge for it.
struct Stopped {
    go: mpsc::Sender<()>,
    holder: Option<JoinHandle<()>>,
}

impl Stopped {
    fn new(pod: &TestPod) -> Self {
        let labels = pod.labels.clone();
        let (go, wait) = mpsc::channel();
        let (held, is_held) = mpsc::channel();
        let holder = std::thread::spawn(move || {
            let _labels = labels.lock().unwrap();
            held.send(()).unwrap();
            // Until the other end is gone.
            let _go = wait.recv();
        });
        is_held.recv().unwrap();
        Self {
            go,
            holder: Some(holder),
        }
    }

    fn resume(mut self) {
        self.go.send(()).unwrap();
        self.holder.take().unwrap().join().unwrap();
    }
}

/// Listens, but drops every SYN: its queue is full.
struct Blackhole {
    _listener: Socket,
    _queue: Vec<Socket>,
}

impl Blackhole {
    fn new(at: SocketAddr) -> Self {
        let socket = || Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&at.into()).unwrap();
        listener.listen(0).unwrap();
        let full = |socket: &Socket| {
            let timeout = Duration::from_millis(200);
            socket.connect_timeout(&at.into(), timeout).is_err()
        };
        let mut queue = Vec::new();
        loop {
            let one = socket();
            if full(&one) {
                break;
            }
            queue.push(one);
            assert!(queue.len() < 100, "the queue of {at} does not fill up");
        }
        Self {
            _listener: listener,
            _queue: queue,
        }
    }
}

/// A service of a bad endpoint and a good one, which is in pod `c`.
async fn service_with(mesh: &Mesh, c: &TestPod, bad: mesh_api::worker::Endpoint) -> SocketAddr {
    let (listener, at) = c.listen(mesh).await;
    tokio::spawn(serve_echo(listener));
    let service = SocketAddr::new(next_ip(), 80);
    let endpoints = [bad, endpoint(at, &c.identity)];
    mesh.publish_service(service, &endpoints, Some(round_robin()));
    service
}

/// Two calls, so that each endpoint is tried first once. Returns how long the slower one took.
async fn two_calls(a: &TestPod, service: SocketAddr) -> Duration {
    call(a, service).await.max(call(a, service).await)
}

#[tokio::test]
async fn a_tunnel_that_breaks_before_the_answer_is_replaced_unseen() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let ip = next_ip();
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let server = TestServer::start(&mesh, ip, certificate, |_| {}).await;
    let to = SocketAddr::new(ip, BREAKING_ONCE_PORT);
    mesh.publish(to, &[endpoint(to, PEER)]);
    let took = call(&a, to).await;
    assert_eq!(server.handshakes(), 2);
    println!("a tunnel lost before the answer, one endpoint: {took:?}");
    assert_eq!(
        a.count("nodemesh_failovers_total", "tunnel_protocol").await,
        0
    );
}

#[tokio::test]
async fn a_worker_that_dies_in_the_handshake_is_followed_by_the_next() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let ip = next_ip();
    let to = SocketAddr::new(ip, 80);
    mesh.publish(to, &[endpoint(to, PEER)]);
    let first = TcpListener::bind((ip, 15008)).await.unwrap();
    let call = call(&a, to);
    let replaced = async {
        let (mut tunnel, _) = within("the tunnel", first.accept()).await.unwrap();
        within("a ClientHello", tunnel.read_u8()).await.unwrap();
        drop(first);
        let certificate = mesh.pki.issue(&Leaf::of(PEER));
        // The first one's tunnel is cut when its successor listens.
        TestServer::start(&mesh, ip, certificate, |_| {}).await
    };
    let (took, server) = tokio::join!(call, replaced);
    println!("a worker that dies in the handshake: {took:?}");
    assert_eq!(server.handshakes(), 1);
}

#[tokio::test]
async fn past_an_endpoint_whose_worker_dies_on_every_call() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let ip = next_ip();
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let server = TestServer::start(&mesh, ip, certificate, |_| {}).await;
    let bad = endpoint((ip, BREAKING_PORT).into(), PEER);
    let service = service_with(&mesh, &c, bad).await;
    let took = two_calls(&a, service).await;
    println!("past an endpoint whose worker dies: {took:?}");
    assert!(took < Duration::from_millis(900));
    assert_eq!(server.handshakes(), 2);
}

#[tokio::test]
async fn past_an_endpoint_that_refuses() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let bad = endpoint((next_ip(), 80).into(), PEER);
    let service = service_with(&mesh, &c, bad).await;
    let took = two_calls(&a, service).await;
    println!("past an endpoint that refuses TCP: {took:?}");
    assert!(took < Duration::from_millis(900));
    assert_eq!(
        a.count("nodemesh_failovers_total", "tunnel_connect").await,
        1
    );
}

#[tokio::test]
async fn past_an_endpoint_whose_app_refuses() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let b = TestPod::start(&mesh, "b").await;
    let bad = endpoint((b.ip, 9999).into(), &b.identity);
    let service = service_with(&mesh, &c, bad).await;
    let took = two_calls(&a, service).await;
    println!("past an endpoint whose app refuses: {took:?}");
    assert!(took < Duration::from_millis(900));
    assert_eq!(
        a.count("nodemesh_failovers_total", "tunnel_refused").await,
        1
    );
    assert!(a.heard.lock().unwrap().refusals.is_empty());
}

#[tokio::test]
async fn past_an_endpoint_that_drops_every_packet() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let ip = next_ip();
    let _blackhole = Blackhole::new((ip, 15008).into());
    let service = service_with(&mesh, &c, endpoint((ip, 80).into(), PEER)).await;
    let took = two_calls(&a, service).await;
    println!("past an endpoint that is black-holed: {took:?}");
    assert!((Duration::from_millis(900)..Duration::from_millis(2500)).contains(&took));
}

#[tokio::test]
async fn past_an_endpoint_that_accepts_and_says_nothing() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let ip = next_ip();
    let _silent = TcpListener::bind((ip, 15008)).await.unwrap();
    let service = service_with(&mesh, &c, endpoint((ip, 80).into(), PEER)).await;
    let took = two_calls(&a, service).await;
    println!("past an endpoint that does not shake hands: {took:?}");
    assert!((Duration::from_millis(900)..Duration::from_millis(2500)).contains(&took));
}

#[tokio::test]
async fn a_worker_that_is_stopped_costs_a_second_and_is_taken_back() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at_b) = b.listen(&mesh).await;
    tokio::spawn(serve_echo(listener));
    let service = service_with(&mesh, &c, endpoint(at_b, &b.identity)).await;
    two_calls(&a, service).await;
    let stopped = Stopped::new(&b);
    // By the tunnel that stands, then by new ones, which get no handshake.
    for by in ["the old tunnel", "a new tunnel"] {
        let took = two_calls(&a, service).await;
        println!("past a worker that is stopped, by {by}: {took:?}");
        assert!((Duration::from_millis(900)..Duration::from_millis(2500)).contains(&took));
    }
    stopped.resume();
    let reached = || b.count("nodemesh_connections_total", "inbound");
    let before = reached().await;
    within("b is used again", async {
        while reached().await < before + 3 {
            call(&a, service).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_is_stopped_slows_few_calls_of_many() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let b = TestPod::start(&mesh, "b").await;
    let service = SocketAddr::new(next_ip(), 80);
    let mut endpoints = Vec::new();
    for pod in [&b, &c] {
        let (listener, at) = pod.listen(&mesh).await;
        tokio::spawn(serve_echo(listener));
        endpoints.push(endpoint(at, &pod.identity));
    }
    // As it is without a ServicePolicy: least requests, out after three failures.
    mesh.publish(service, &endpoints);
    call(&a, service).await;
    let stopped = Stopped::new(&b);
    let callers = (0..10).map(|_| async {
        for _ in 0..40 {
            call(&a, service).await;
        }
    });
    futures_util::future::join_all(callers).await;
    stopped.resume();
    let met = a.count("nodemesh_failovers_total", "tunnel_refused").await
        + a.count("nodemesh_failovers_total", "tunnel_connect").await;
    println!("of 400 calls, ten at a time, {met} met the stopped worker");
    // Until it is ejected, no more than are under way at once.
    assert!((1..=10).contains(&met), "{met}");
    assert_eq!(a.count("nodemesh_outlier_ejections_total", "").await, 1);
}

#[tokio::test]
async fn a_stale_tunnel_to_a_lone_endpoint_is_not_waited_for() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    tokio::spawn(serve_echo(listener));
    call(&a, at).await;
    let stopped = Stopped::new(&b);
    let resume = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(4)).await;
        stopped.resume();
    });
    // Its CONNECT is given to a tunnel that is made when b is back, at the latest.
    let took = call(&a, at).await;
    println!("a lone endpoint, stopped for 4 s: {took:?}");
    assert!(took < Duration::from_secs(8));
    resume.await.unwrap();
    // Whoever comes next does not wait.
    let took = call(&a, at).await;
    assert!(took < Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn an_app_that_does_not_accept_takes_no_tunnel_from_others() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    tokio::spawn(serve_echo(listener));
    call(&a, at).await;
    let full = SocketAddr::new(b.ip, 7777);
    let _full = Blackhole::new(full);
    mesh.publish(full, &[endpoint(full, &b.identity)]);
    let hanging = a.dial(full).await;
    // Past the time at which the tunnel was in doubt.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let took = call(&a, at).await;
    assert!(took < Duration::from_millis(900), "{took:?}");
    assert_eq!(b.count("nodemesh_handshakes_total", "inbound").await, 1);
    drop(hanging);
}

#[tokio::test]
async fn an_impostor_is_passed_over_and_told_of() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let b = TestPod::start(&mesh, "b").await;
    let bad = endpoint((b.ip, 80).into(), PEER);
    let service = service_with(&mesh, &c, bad).await;
    two_calls(&a, service).await;
    a.refused("outbound", Reason::PeerIdentity, 1).await;
    assert_eq!(
        a.count("nodemesh_failovers_total", "peer_identity").await,
        1
    );
}

#[tokio::test]
async fn a_refusal_by_policy_is_an_answer() {
    let mesh = Mesh::new();
    let (a, c) = (
        TestPod::start(&mesh, "a").await,
        TestPod::start(&mesh, "c").await,
    );
    let ip = next_ip();
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let _server = TestServer::start(&mesh, ip, certificate, |_| {}).await;
    let strict = endpoint((ip, FORBIDDEN_PORT).into(), PEER);
    let service = service_with(&mesh, &c, strict).await;
    a.dial_in_vain(service).await;
    a.refused("outbound", Reason::PeerPolicy, 1).await;
    assert_eq!(c.count("nodemesh_connections_total", "inbound").await, 0);
}

#[tokio::test]
async fn when_all_fail_the_last_ones_reason_is_told() {
    let mesh = Mesh::new();
    let options = Options {
        limits: Limits {
            handshake_timeout_ms: 2000,
            ..Limits::default()
        },
        ..Options::default()
    };
    let a = TestPod::start_with(&mesh, "a", options).await;
    let silent = next_ip();
    let _silent = TcpListener::bind((silent, 15008)).await.unwrap();
    let refusing = endpoint((next_ip(), 80).into(), PEER);
    let service = SocketAddr::new(next_ip(), 80);
    let endpoints = [refusing, endpoint((silent, 80).into(), PEER)];
    mesh.publish_service(service, &endpoints, Some(round_robin()));
    let start = Instant::now();
    a.dial_in_vain(service).await;
    let took = start.elapsed();
    // The last one has the full time.
    assert!((Duration::from_millis(1900)..Duration::from_secs(4)).contains(&took));
    a.refused("outbound", Reason::HandshakeTimeout, 1).await;
}
