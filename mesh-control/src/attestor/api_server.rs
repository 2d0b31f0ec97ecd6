//! The few questions that the API server of Kubernetes is asked: over TLS, with control's own
//! service account token, which kubelet renews in its file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 * 1024;

/// Why the API server can't be asked, or gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiFault {
    /// An address that it can't have.
    #[error("{0:?} is no address of an API server: give https://HOST:PORT")]
    Address(String),
    /// A file can't be used.
    #[error("{0}: {1}")]
    File(PathBuf, String),
    /// No connection.
    #[error("connecting to {0}: {1}")]
    Connect(String, String),
    /// The answer is none.
    #[error("its answer: {0}")]
    Answer(String),
}

/// An API server.
#[derive(Clone)]
pub struct ApiServer {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
    token_file: PathBuf,
}

impl ApiServer {
    /// The one at `address`, `https://HOST:PORT`, whose certificate chains to `ca_file` (PEM),
    /// called with the token in `token_file`.
    ///
    /// # Errors
    /// An address or a file that can't be used.
    pub fn new(address: &str, ca_file: &Path, token_file: &Path) -> Result<Self, ApiFault> {
        let wrong = || ApiFault::Address(address.to_owned());
        let uri: Uri = address.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']);
        if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
            return Err(wrong());
        }
        let unusable = |e: &dyn std::fmt::Display| ApiFault::File(ca_file.into(), e.to_string());
        let mut roots = RootCertStore::empty();
        let pem = std::fs::read(ca_file).map_err(|e| unusable(&e))?;
        for root in CertificateDer::pem_slice_iter(&pem) {
            let root = root.map_err(|e| unusable(&e))?;
            roots.add(root).map_err(|e| unusable(&e))?;
        }
        if roots.is_empty() {
            return Err(unusable(&"it holds no PEM certificate"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            name: ServerName::try_from(host.to_owned()).map_err(|_| wrong())?,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(443),
            tls: TlsConnector::from(Arc::new(tls)),
            token_file: token_file.to_owned(),
        })
    }

    /// Posts an object, and gives what comes back.
    ///
    /// # Errors
    /// No answer in time, or one that says no.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Bytes, ApiFault> {
        let asked = tokio::time::timeout(PATIENCE, self.post(path, object));
        let seconds = PATIENCE.as_secs();
        asked
            .await
            .map_err(|_| ApiFault::Answer(format!("none within {seconds} s")))?
    }

    async fn post(&self, path: &str, object: &Value) -> Result<Bytes, ApiFault> {
        let unanswered = |e: &dyn std::fmt::Display| ApiFault::Answer(e.to_string());
        // A page of memory: kubelet has it in a tmpfs.
        let token = std::fs::read_to_string(&self.token_file);
        let token = token.map_err(|e| ApiFault::File(self.token_file.clone(), e.to_string()))?;
        let (host, port) = (&self.host, self.port);
        let unconnected =
            |e: std::io::Error| ApiFault::Connect(format!("{host}:{port}"), e.to_string());
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(unconnected)?;
        let stream = self.tls.connect(self.name.clone(), stream).await;
        let stream = TokioIo::new(stream.map_err(unconnected)?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(|e| unanswered(&e))?;
        // It ends with the sender, or with the server; either shows in the answer.
        let connection = tokio::spawn(connection);
        let request = Request::post(path)
            .header(HOST, format!("{host}:{port}"))
            .header(AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .body(Full::new(Bytes::from(object.to_string())))
            .map_err(|e| unanswered(&e))?;
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|e| unanswered(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        connection.abort();
        let body = body.map_err(|e| unanswered(&e))?.to_bytes();
        if !status.is_success() {
            let said: String = String::from_utf8_lossy(&body).chars().take(256).collect();
            return Err(ApiFault::Answer(format!("{status}: {said}")));
        }
        Ok(body)
    }
}
