//! Tunnels to the ports of apps.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;
use mesh_api::worker::{Endpoint, SourceInfo};
use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::super::original_port::SOURCE_PORTS;
use super::harness::{Mesh, TestPod, endpoint, next_ip, octets, within};
use super::peers::{PEER, connect, h2_in, status_of};
use super::relay::expect_reset;

/// What discovery says of a member of the mesh.
fn member(ip: IpAddr, identity: &str) -> SourceInfo {
    SourceInfo {
        address: octets(ip),
        known: true,
        identity: identity.to_owned(),
        hbone: true,
        ..SourceInfo::default()
    }
}

/// A port of a pod's app, in front of which the test steers as the kernel does.
struct Port {
    at: SocketAddr,
    /// Where callers came from.
    callers: mpsc::UnboundedReceiver<SocketAddr>,
}

impl Port {
    /// An echo; whoever comes from elsewhere than the pod's own worker is led to that.
    async fn open(mesh: &Mesh, pod: Arc<TestPod>) -> Self {
        let listener = TcpListener::bind((pod.ip, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let to = Endpoint {
            original_port: true,
            ..endpoint(at, &pod.identity)
        };
        mesh.publish(at, &[to]);
        let (told, callers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                // The worker dials its app from there.
                if from.ip() == IpAddr::from([127, 0, 0, 1]) {
                    tokio::spawn(echo(stream));
                } else {
                    told.send(from).unwrap();
                    // Where the worker refuses, the caller hears of it by the end of its connection.
                    if let Ok(worker) = steered(&pod, from.ip(), at).await {
                        tokio::spawn(pipe(stream, worker));
                    }
                }
            }
        });
        Self { at, callers }
    }
}

async fn echo(mut app: TcpStream) {
    let (mut read, mut write) = app.split();
    let _ended = copy(&mut read, &mut write).await;
    let _ended = write.shutdown().await;
}

async fn pipe(mut one: TcpStream, mut other: TcpStream) {
    let _ended = copy_bidirectional(&mut one, &mut other).await;
}

/// A connection from one of the ports of tunnels.
async fn steered(pod: &TestPod, from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    for port in SOURCE_PORTS {
        match pod.steer(SocketAddr::new(from, port), to).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            outcome => return outcome,
        }
    }
    panic!("every port of {from} is taken");
}

async fn call(pod: &TestPod, to: SocketAddr) {
    let mut app = pod.dial(to).await;
    app.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    within("the echo", app.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"hello");
}

async fn two_pods(mesh: &Arc<Mesh>) -> (TestPod, Arc<TestPod>) {
    let a = TestPod::start(mesh, "a").await;
    let b = TestPod::start(mesh, "b").await;
    (a, Arc::new(b))
}

#[tokio::test]
async fn a_tunnel_goes_to_the_port_that_is_called_and_each_port_has_its_own() {
    let mesh = Mesh::new();
    let (a, b) = two_pods(&mesh).await;
    mesh.introduce(a.ip, Some(member(a.ip, &a.identity)));
    let mut one = Port::open(&mesh, b.clone()).await;
    let mut other = Port::open(&mesh, b.clone()).await;
    for _ in 0..3 {
        call(&a, one.at).await;
        call(&a, other.at).await;
    }
    for port in [&mut one, &mut other] {
        let from = port.callers.recv().await.unwrap();
        assert_eq!(from.ip(), a.ip);
        assert!(SOURCE_PORTS.contains(&from.port()), "{from}");
        assert!(port.callers.try_recv().is_err(), "a second tunnel");
    }
    assert_eq!(b.count("nodemesh_handshakes_total", "inbound").await, 2);
    assert_eq!(a.count("nodemesh_original_port_refused_total", "").await, 0);
}

#[tokio::test]
async fn who_is_not_known_to_be_of_the_mesh_is_plaintext_and_15008_does() {
    let mesh = Mesh::new();
    let (a, b) = two_pods(&mesh).await;
    let mut port = Port::open(&mesh, b.clone()).await;
    call(&a, port.at).await;
    assert!(port.callers.recv().await.is_some());
    assert_eq!(a.count("nodemesh_original_port_refused_total", "").await, 1);
    b.refused("inbound", Reason::InboundPlaintext, 2).await;
}

#[tokio::test]
async fn from_any_other_port_it_is_plaintext() {
    let mesh = Mesh::new();
    let (a, b) = two_pods(&mesh).await;
    mesh.introduce(a.ip, Some(member(a.ip, &a.identity)));
    let to = SocketAddr::new(b.ip, 80);
    match b.call_plain(a.ip, to).await {
        Ok(mut plain) => expect_reset(&mut plain).await,
        // Before `connect` has returned.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    b.refused("inbound", Reason::InboundPlaintext, 1).await;
}

#[tokio::test]
async fn its_streams_lead_to_that_port_only() {
    let mesh = Mesh::new();
    let (_a, b) = two_pods(&mesh).await;
    let from = next_ip();
    mesh.introduce(from, Some(member(from, PEER)));
    let port = Port::open(&mesh, b.clone()).await;
    let other = Port::open(&mesh, b.clone()).await;
    let steered = steered(&b, from, port.at).await.unwrap();
    let mut sender = h2_in(&mesh, steered).await;
    let answer = status_of(&mut sender, connect(&port.at.to_string())).await;
    assert_eq!(answer, StatusCode::OK);
    let answer = status_of(&mut sender, connect(&other.at.to_string())).await;
    assert_eq!(answer, StatusCode::BAD_REQUEST);
    b.refused("inbound", Reason::AuthorityOtherPort, 1).await;
}
