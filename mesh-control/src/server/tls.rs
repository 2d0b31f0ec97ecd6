//! TLS of the server: 1.3 only, its own certificate replaced while it runs, client
//! certificates verified where they are shown.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::caller::{Peer, Shown};
use super::lease::{Alarm, Lease};
use crate::ca::TrustBundle;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time, handshakes included.
const MAX_CONNECTIONS: usize = 8192;
/// Without a certificate a connection is good for one join, or for a call that bears a token;
/// without either it is closed.
const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(30);
/// With a certificate that no call will be let in with.
const USELESS_LIFETIME: Duration = Duration::from_secs(5);
/// After `accept` fails for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server's own certificate. Replacing it affects the next handshakes.
#[derive(Debug)]
pub(super) struct OwnCertificate(RwLock<Arc<CertifiedKey>>);

impl OwnCertificate {
    /// Begins with a certificate.
    #[must_use]
    pub(super) fn new(certificate: Arc<CertifiedKey>) -> Self {
        Self(RwLock::new(certificate))
    }

    /// Takes another one from now on.
    pub(super) fn replace(&self, certificate: Arc<CertifiedKey>) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *current = certificate;
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.clone())
    }
}

/// How clients are verified, and the configuration that does it.
#[derive(Clone)]
pub(super) struct Trust {
    clients: Arc<dyn ClientCertVerifier>,
    config: Arc<ServerConfig>,
}

/// What is trusted as the bundle is now, and what keeps it in step.
///
/// # Errors
/// Roots that can't be used.
pub(super) fn following(
    mut bundle: watch::Receiver<Arc<TrustBundle>>,
    own: Arc<OwnCertificate>,
) -> anyhow::Result<(watch::Receiver<Trust>, impl Future<Output = ()> + Send)> {
    let first = bundle.borrow_and_update().clone();
    let (trusts, trust) = watch::channel(trust(first.roots(), own.clone())?);
    let follow = async move {
        while bundle.changed().await.is_ok() {
            let now = bundle.borrow_and_update().clone();
            match self::trust(now.roots(), own.clone()) {
                Ok(trust) => {
                    trusts.send_replace(trust);
                }
                Err(error) => {
                    tracing::error!(%error, "clients are verified by the roots as they were");
                }
            }
        }
    };
    Ok((trust, follow))
}

fn trust(roots: &[CertificateDer<'static>], own: Arc<OwnCertificate>) -> anyhow::Result<Trust> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    let clients = WebPkiClientVerifier::builder_with_provider(store.into(), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients.clone())
        .with_cert_resolver(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would carry on with a client certificate that was verified earlier.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Trust {
        clients,
        config: Arc::new(config),
    })
}

/// Accepts connections and hands over those whose handshake succeeds.
pub(super) async fn accept(
    listener: TcpListener,
    trust: watch::Receiver<Trust>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        match accepted {
            Ok((socket, _)) => {
                let (trust, ready) = (trust.clone(), ready.clone());
                tokio::spawn(handshake(trust, socket, permit, ready));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(
    mut trust: watch::Receiver<Trust>,
    socket: TcpStream,
    permit: OwnedSemaphorePermit,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let Ok(address) = socket.peer_addr() else {
        return;
    };
    let acceptor = TlsAcceptor::from(trust.borrow_and_update().config.clone());
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%address, %error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::info!(%address, "TLS handshake was not done in time");
            return;
        }
    };
    let chain = stream.get_ref().1.peer_certificates();
    let shown = chain.and_then(Shown::new);
    let lease = Lease::default();
    let at_least = match &shown {
        None => ANONYMOUS_LIFETIME,
        Some(Ok(shown)) => {
            lease.extend(shown.leaf.not_after_s);
            USELESS_LIFETIME
        }
        Some(Err(_)) => USELESS_LIFETIME,
    };
    let connection = Connection {
        stream,
        peer: Peer {
            address,
            shown: shown.map(Arc::new),
            lease: lease.clone(),
        },
        end: Alarm::new(lease, at_least),
        trust,
        _permit: permit,
    };
    // Nobody takes it: the server is stopping.
    let _ = ready.send(Ok(connection)).await;
}

/// A TLS connection that outlives neither its client's certificate or token, nor the trust in the
/// root of the former.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    end: Alarm,
    trust: watch::Receiver<Trust>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Whether the client's certificate would be taken in a handshake now. A connection that has
    /// nothing to read is pinged, so this is asked every 20 s at least.
    fn trusted(&mut self) -> bool {
        if !self.trust.has_changed().unwrap_or(false) {
            return true;
        }
        let clients = self.trust.borrow_and_update().clients.clone();
        match self.stream.get_ref().1.peer_certificates() {
            Some([leaf, rest @ ..]) => clients
                .verify_client_cert(leaf, rest, UnixTime::now())
                .is_ok(),
            _ => true,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if !self.trusted() {
            let address = self.peer.address;
            tracing::info!(%address, "connection ended: the root of its certificate was taken away");
            return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
