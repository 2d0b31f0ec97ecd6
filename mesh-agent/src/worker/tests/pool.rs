//! Tunnels are shared, and their failures are not.

use std::net::SocketAddr;

use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::failover::round_robin;
use super::harness::{Mesh, TestPod, endpoint, next_ip, within};
use super::peers::PEER;
use super::pki::Leaf;
use super::server::TestServer;

pub(super) async fn serve_echo(listener: TcpListener) {
    loop {
        let (mut app, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let (mut read, mut write) = app.split();
            let _ended = tokio::io::copy(&mut read, &mut write).await;
            let _ended = write.shutdown().await;
        });
    }
}

#[tokio::test]
async fn a_hundred_concurrent_flows_share_one_tunnel() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    tokio::spawn(serve_echo(listener));
    let mut apps = Vec::new();
    for _ in 0..100 {
        let mut app = a.dial(at).await;
        app.write_all(b"hello").await.unwrap();
        apps.push(app);
    }
    for app in &mut apps {
        let mut back = [0; 5];
        within("the echo", app.read_exact(&mut back)).await.unwrap();
    }
    assert_eq!(a.count("nodemesh_handshakes_total", "outbound").await, 1);
    assert_eq!(b.count("nodemesh_handshakes_total", "inbound").await, 1);
    assert_eq!(a.heard.lock().unwrap().asked.len(), 1);
    // The 129th stream needs a second one.
    for _ in 0..29 {
        let mut app = a.dial(at).await;
        app.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        within("the echo", app.read_exact(&mut back)).await.unwrap();
        apps.push(app);
    }
    assert_eq!(a.count("nodemesh_tunnels_open", "outbound").await, 2);
}

#[tokio::test]
async fn a_failed_connect_fails_who_waits_and_nobody_later() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let ip = next_ip();
    let to = SocketAddr::new(ip, 1000);
    mesh.publish(to, &[endpoint(to, PEER)]);
    for _ in 0..3 {
        a.dial_in_vain(to).await;
    }
    a.refused("outbound", Reason::TunnelConnect, 3).await;
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let _server = TestServer::start(&mesh, ip, certificate, |_| {}).await;
    let mut app = a.dial(to).await;
    app.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    within("the echo", app.read_exact(&mut back)).await.unwrap();
}

#[tokio::test]
async fn a_connect_that_hangs_holds_up_no_other_destination() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    tokio::spawn(serve_echo(listener));
    let silent_ip = next_ip();
    let _silent = TcpListener::bind((silent_ip, 15008)).await.unwrap();
    let silent = SocketAddr::new(silent_ip, 80);
    mesh.publish(silent, &[endpoint(silent, PEER)]);
    let _hanging = a.dial(silent).await;
    let mut app = a.dial(at).await;
    app.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    within("the echo", app.read_exact(&mut back)).await.unwrap();
    assert_eq!(a.count("nodemesh_connections_open", "outbound").await, 2);
}

#[tokio::test]
async fn a_service_goes_round_and_past_an_endpoint_that_is_gone() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let c = TestPod::start(&mesh, "c").await;
    let (in_b, at_b) = b.listen(&mesh).await;
    let (in_c, at_c) = c.listen(&mesh).await;
    tokio::spawn(serve_echo(in_b));
    tokio::spawn(serve_echo(in_c));
    let gone = SocketAddr::new(next_ip(), 80);
    let service = SocketAddr::new(next_ip(), 80);
    let endpoints = [
        endpoint(at_b, &b.identity),
        endpoint(gone, PEER),
        endpoint(at_c, &c.identity),
    ];
    mesh.publish_service(service, &endpoints, Some(round_robin()));
    for _ in 0..6 {
        let mut app = a.dial(service).await;
        app.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        within("the echo", app.read_exact(&mut back)).await.unwrap();
    }
    assert_eq!(b.count("nodemesh_connections_total", "inbound").await, 2);
    assert_eq!(c.count("nodemesh_connections_total", "inbound").await, 4);
}

#[tokio::test]
async fn one_destination_with_another_identity_is_another_tunnel() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    tokio::spawn(serve_echo(listener));
    let mut good = a.dial(at).await;
    good.write_all(b"hello").await.unwrap();
    within("the echo", good.read_exact(&mut [0; 5]))
        .await
        .unwrap();
    // A tunnel to b stands, but discovery says that someone else is to be there.
    let alias = SocketAddr::new(next_ip(), 80);
    mesh.publish(alias, &[endpoint(at, PEER)]);
    a.dial_in_vain(alias).await;
    a.refused("outbound", Reason::PeerIdentity, 1).await;
}
