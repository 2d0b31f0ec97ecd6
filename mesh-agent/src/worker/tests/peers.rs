//! Peers that are no Nodemesh workers: with other settings, other manners, other ideas.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::Builder;
use http::{Method, Request, StatusCode};
use mesh_core::reason::Reason;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::harness::{Mesh, TestPod, endpoint, next_ip, within};
use super::pki::Leaf;
use super::relay::expect_reset;
use super::server::{LAST_STREAM_PORT, TestServer};

pub(super) const PEER: &str = "spiffe://cluster.local/ns/test/sa/peer";

pub(super) type Certificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Believes every server.
#[derive(Debug)]
struct Believer;

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A TLS connection to a worker, with a certificate of the test's choice.
pub(super) async fn dial_tls(
    to: SocketAddr,
    certificate: Option<Certificate>,
) -> std::io::Result<TlsStream<TcpStream>> {
    dial_tls_as(to, certificate, b"h2").await
}

/// The same, speaking another protocol.
pub(super) async fn dial_tls_as(
    to: SocketAddr,
    certificate: Option<Certificate>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    shake(TcpStream::connect(to).await?, certificate, protocol).await
}

/// The same on a connection that stands.
async fn shake(
    stream: TcpStream,
    certificate: Option<Certificate>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer));
    let mut config = match certificate {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    within("a handshake", handshake).await
}

/// HTTP/2 to a worker as the good peer.
pub(super) async fn dial_h2(mesh: &Mesh, to: SocketAddr) -> SendRequest<Bytes> {
    h2_in(mesh, TcpStream::connect(to).await.unwrap()).await
}

/// The same on a connection that stands.
pub(super) async fn h2_in(mesh: &Mesh, stream: TcpStream) -> SendRequest<Bytes> {
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let tls = shake(stream, Some(certificate), b"h2").await.unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(async move {
        // Ends with the test.
        let _ended = connection.await;
    });
    sender
}

async fn echo(app: &mut TcpStream, bytes: usize) {
    let block = vec![5; bytes];
    let (mut read, mut write) = app.split();
    let (sent, ()) = tokio::join!(write.write_all(&block), async {
        let mut back = vec![0; bytes];
        within("the echo", read.read_exact(&mut back))
            .await
            .unwrap();
        assert!(back == block);
    });
    sent.unwrap();
}

/// Eight streams that nobody reads, then one that somebody does.
async fn stalled_and_healthy(settings: impl Fn(&mut Builder) + Send + 'static) {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let ip = next_ip();
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let _server = TestServer::start(&mesh, ip, certificate, settings).await;
    for port in [1001, 1000] {
        let to = SocketAddr::new(ip, port);
        mesh.publish(to, &[endpoint(to, PEER)]);
    }
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let app = pod.dial((ip, 1001).into()).await;
        stalled.push(tokio::spawn(async move {
            let mut app = app;
            let block = vec![1; 8 << 20];
            // Never done: the peer does not read.
            let _ = app.write_all(&block).await;
        }));
    }
    // Each has pushed what fits.
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = pod.count("nodemesh_bytes_total", "outbound_sent").await;
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    let mut healthy = pod.dial((ip, 1000).into()).await;
    echo(&mut healthy, 4 << 20).await;
    for stalled in stalled {
        stalled.abort();
    }
}

#[tokio::test]
async fn a_peer_with_the_protocols_default_windows() {
    stalled_and_healthy(|_| {}).await;
}

#[tokio::test]
async fn a_peer_with_an_ambient_proxys_windows() {
    stalled_and_healthy(|builder| {
        builder
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .max_concurrent_streams(200);
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_takes_two_streams_gets_more_tunnels() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let ip = next_ip();
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let server = TestServer::start(&mesh, ip, certificate, |builder| {
        builder
            .initial_connection_window_size(8 << 20)
            .max_concurrent_streams(2);
    })
    .await;
    let to = SocketAddr::new(ip, 1000);
    mesh.publish(to, &[endpoint(to, PEER)]);
    let mut apps = Vec::new();
    for _ in 0..7 {
        let mut app = pod.dial(to).await;
        echo(&mut app, 10).await;
        apps.push(app);
    }
    assert_eq!(server.handshakes(), 4);
    assert_eq!(pod.count("nodemesh_tunnels_open", "outbound").await, 4);
}

#[tokio::test]
async fn after_goaway_old_streams_live_on_and_new_ones_take_a_new_tunnel() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let ip = next_ip();
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let server = TestServer::start(&mesh, ip, certificate, |_| {}).await;
    for port in [1000, LAST_STREAM_PORT] {
        let to = SocketAddr::new(ip, port);
        mesh.publish(to, &[endpoint(to, PEER)]);
    }
    let mut last = pod.dial((ip, LAST_STREAM_PORT).into()).await;
    echo(&mut last, 1000).await;
    let mut next = pod.dial((ip, 1000).into()).await;
    echo(&mut next, 1000).await;
    echo(&mut last, 1000).await;
    assert_eq!(server.handshakes(), 2);
    drop(last);
    pod.counted("nodemesh_tunnels_open", "outbound", 1).await;
    echo(&mut next, 1000).await;
}

#[tokio::test]
async fn a_tunnel_that_is_cut_resets_its_flows() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let ip = next_ip();
    let certificate = mesh.pki.issue(&Leaf::of(PEER));
    let server = TestServer::start(&mesh, ip, certificate, |_| {}).await;
    let to = SocketAddr::new(ip, 1000);
    mesh.publish(to, &[endpoint(to, PEER)]);
    let mut app = pod.dial(to).await;
    echo(&mut app, 1000).await;
    drop(server);
    expect_reset(&mut app).await;
    pod.counted("nodemesh_tunnels_open", "outbound", 0).await;
    pod.counted("nodemesh_connections_open", "outbound", 0)
        .await;
}

pub(super) async fn status_of(sender: &mut SendRequest<Bytes>, request: Request<()>) -> StatusCode {
    let (response, _stream) = sender.send_request(request, false).unwrap();
    within("an answer", response).await.unwrap().status()
}

pub(super) fn connect(authority: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())
        .unwrap()
}

#[tokio::test]
async fn only_connect_to_this_pods_own_ports_is_served() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "b").await;
    let (_listener, at) = pod.listen(&mesh).await;
    let mut sender = dial_h2(&mesh, pod.hbone()).await;
    let get = Request::get(format!("http://{at}/")).body(()).unwrap();
    let foreign = next_ip();
    for (request, status, reason, times) in [
        (get, StatusCode::BAD_REQUEST, Reason::TunnelProtocol, 1),
        (
            connect("app.test:80"),
            StatusCode::BAD_REQUEST,
            Reason::TunnelProtocol,
            2,
        ),
        (
            connect(&format!("{foreign}:80")),
            StatusCode::BAD_REQUEST,
            Reason::AuthorityNotThisPod,
            1,
        ),
        (
            connect("127.0.0.1:80"),
            StatusCode::BAD_REQUEST,
            Reason::AuthorityNotThisPod,
            2,
        ),
        (
            connect(&format!("{}:15001", pod.ip)),
            StatusCode::SERVICE_UNAVAILABLE,
            Reason::AuthorityReservedPort,
            1,
        ),
    ] {
        pod.heard.lock().unwrap().refusals.clear();
        assert_eq!(status_of(&mut sender, request).await, status);
        pod.refused("inbound", reason, times).await;
    }
    // The connection has survived all of it.
    let answer = status_of(&mut sender, connect(&at.to_string())).await;
    assert_eq!(answer, StatusCode::OK);
}

#[tokio::test]
async fn a_client_label_is_never_anothers_address() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "b").await;
    let (_listener, at) = pod.listen(&mesh).await;
    let mut sender = dial_h2(&mesh, pod.hbone()).await;
    let mut request = connect(&at.to_string());
    let lie = "for=\"10.9.9.9:1\"".parse().unwrap();
    request.headers_mut().insert("forwarded", lie);
    assert_eq!(status_of(&mut sender, request).await, StatusCode::OK);
    let mut request = connect(&at.to_string());
    let truth = "for=\"127.0.0.1:77\"".parse().unwrap();
    request.headers_mut().insert("forwarded", truth);
    assert_eq!(status_of(&mut sender, request).await, StatusCode::OK);
    let labels = pod.labels.lock().unwrap();
    assert_eq!(labels[0].ip(), IpAddr::from([127, 0, 0, 1]));
    assert_ne!(labels[0].port(), 1);
    assert_eq!(labels[1], SocketAddr::from(([127, 0, 0, 1], 77)));
}
