//! An HBONE server that is no Nodemesh worker, with settings of the test's choice.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use http::{Method, Request, Response, StatusCode};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::harness::Mesh;
use super::peers::Certificate;

/// A server on the HBONE port that answers every CONNECT with 200 and then does what the
/// request's port says: even ports echo, odd ones never read.
pub(super) struct TestServer {
    handshakes: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestServer {
    pub(super) async fn start(
        mesh: &Mesh,
        ip: IpAddr,
        (chain, key): Certificate,
        settings: impl Fn(&mut Builder) + Send + 'static,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(mesh.pki.roots().into_iter().map(CertificateDer::from));
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((ip, 15008)).await.unwrap();
        let handshakes = Arc::new(AtomicUsize::new(0));
        let counter = handshakes.clone();
        let broken = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut builder = Builder::new();
                settings(&mut builder);
                let (acceptor, counter) = (acceptor.clone(), counter.clone());
                let broken = broken.clone();
                connections.spawn(async move {
                    let tls = match acceptor.accept(stream).into_fallible().await {
                        Ok(tls) => tls,
                        Err((_, mut stream)) => {
                            // Or the kernel's RST would overtake the alert.
                            let _gone = stream.shutdown().await;
                            let mut rest = Vec::new();
                            let _gone = stream.read_to_end(&mut rest).await;
                            return;
                        }
                    };
                    counter.fetch_add(1, Ordering::SeqCst);
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(tls).await else {
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        match request.uri().port_u16() {
                            Some(LAST_STREAM_PORT) => connection.graceful_shutdown(),
                            Some(BREAKING_PORT) => return,
                            Some(BREAKING_ONCE_PORT) if !broken.swap(true, Ordering::SeqCst) => {
                                return;
                            }
                            _ => {}
                        }
                        tokio::spawn(answer(request, respond));
                    }
                });
            }
        });
        Self { handshakes, task }
    }

    /// TLS handshakes done so far.
    pub(super) fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::SeqCst)
    }
}

/// A CONNECT for this port is answered with GOAWAY too.
pub(super) const LAST_STREAM_PORT: u16 = 4444;
/// A CONNECT for this port ends its tunnel without an answer, as a worker that is killed does.
pub(super) const BREAKING_PORT: u16 = 4446;
/// The same for the first such CONNECT; later ones are served.
pub(super) const BREAKING_ONCE_PORT: u16 = 4448;
/// A CONNECT for this port is answered with 401.
pub(super) const FORBIDDEN_PORT: u16 = 4450;

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
    assert_eq!(request.method(), Method::CONNECT);
    let forwarded = request.headers()["forwarded"].to_str().unwrap();
    assert!(forwarded.starts_with("for=\"127."), "{forwarded}");
    let baggage = request.headers()["baggage"].to_str().unwrap();
    let expected = "k8s.cluster.name=Kubernetes,k8s.namespace.name=test,k8s.pod.name=a";
    assert_eq!(baggage, expected);
    if request.uri().port_u16() == Some(FORBIDDEN_PORT) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        respond.send_response(response, true).unwrap();
        return;
    }
    let reads = request.uri().port_u16().unwrap().is_multiple_of(2);
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    let mut receive = request.into_body();
    if !reads {
        std::future::pending::<()>().await;
    }
    while let Some(Ok(data)) = receive.data().await {
        receive.flow_control().release_capacity(data.len()).unwrap();
        send.send_data(data, false).unwrap();
    }
    // The client may have reset the stream.
    let _ = send.send_data(Bytes::new(), true);
}
