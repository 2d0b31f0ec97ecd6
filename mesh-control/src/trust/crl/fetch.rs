//! Revocation lists that are fetched over HTTP: each into a file of the state folder, which is
//! followed as one that the operator gave. What is fetched is checked before it is kept, so a server
//! that fails, or says something else, leaves the last good list; so does a restart.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::HOST;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use metrics::counter;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{MAX_FILE_LEN, read};

/// How long a fetch may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// After one that failed, and between two at least.
const RETRY: Duration = Duration::from_secs(60);

/// Why a list is not fetched.
#[derive(Debug, thiserror::Error)]
#[error("{uri}: {why}")]
pub struct FetchFault {
    uri: String,
    why: String,
}

/// One list, its address and its file.
#[derive(Clone)]
pub struct Fetched {
    uri: Uri,
    host: String,
    file: PathBuf,
    tls: Option<TlsConnector>,
}

/// Whether this names a list to fetch, and not a file.
#[must_use]
pub fn is_url(given: &str) -> bool {
    given.starts_with("http://") || given.starts_with("https://")
}

/// TLS that trusts the roots of a PEM file.
///
/// # Errors
/// A file that can't be read, or that holds no usable root.
pub fn tls(roots: &Path) -> Result<TlsConnector, String> {
    let pem = fs::read(roots).map_err(|e| e.to_string())?;
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&pem) {
        let root = root.map_err(|e| e.to_string())?;
        store.add(root).map_err(|e| e.to_string())?;
    }
    if store.is_empty() {
        return Err("it holds no PEM certificate".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Fetched {
    /// A list at `given`, kept in a file in `folder`, which is made. `tls` is for `https`.
    ///
    /// # Errors
    /// An address that is none, `https` without `tls`, or a folder that can't be made.
    pub fn new(given: &str, folder: &Path, tls: Option<&TlsConnector>) -> Result<Self, FetchFault> {
        let fault = |why: String| FetchFault {
            uri: given.to_owned(),
            why,
        };
        let uri: Uri = given.parse().map_err(|_| fault("no URL".to_owned()))?;
        let host = uri
            .host()
            .ok_or_else(|| fault("it has no host".to_owned()))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let tls = tls.filter(|_| uri.scheme_str() == Some("https")).cloned();
        if tls.is_none() && uri.scheme_str() != Some("http") {
            let why = "for https, give the roots of its server: --crl-server-root FILE";
            return Err(fault(why.to_owned()));
        }
        fs::create_dir_all(folder).map_err(|e| fault(format!("{}: {e}", folder.display())))?;
        let hash = digest(&SHA256, given.as_bytes());
        let name: String = hash.as_ref()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self {
            uri,
            host,
            file: folder.join(format!("{name}.crl")),
            tls,
        })
    }

    /// Where it is kept.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Fetches and keeps it. Gives the earliest `nextUpdate` in it, in seconds since the epoch.
    ///
    /// # Errors
    /// No answer, or one that is no list of `authorities`; what was kept stays.
    pub async fn fetch(
        &self,
        authorities: &[CertificateDer<'_>],
    ) -> Result<Option<i64>, FetchFault> {
        let got = tokio::time::timeout(PATIENCE, self.get()).await;
        let got = got.unwrap_or_else(|_| Err(format!("no answer in {PATIENCE:?}")));
        let kept = got.and_then(|bytes| {
            let lists = read(&self.file, &bytes, authorities, crate::now_s());
            let lists = lists.map_err(|fault| fault.to_string())?;
            self.keep(&bytes)
                .map_err(|e| format!("{}: {e}", self.file.display()))?;
            Ok(lists.iter().filter_map(|list| list.next_update_s).min())
        });
        kept.map_err(|why| FetchFault {
            uri: self.uri.to_string(),
            why,
        })
    }

    /// Fetches it again and again: every `refresh`, and when its `nextUpdate` has come.
    pub async fn follow(
        self,
        refresh: Duration,
        authorities: impl Fn() -> Vec<CertificateDer<'static>>,
    ) {
        loop {
            let wait = match self.fetch(&authorities()).await {
                Ok(next_update_s) => {
                    let left_s = next_update_s.map_or(i64::MAX, |at| at - crate::now_s());
                    let left = Duration::from_secs(u64::try_from(left_s).unwrap_or(0));
                    left.max(RETRY).min(refresh)
                }
                Err(error) => {
                    counter!("nodemesh_control_crl_fetch_failures_total").increment(1);
                    tracing::error!(%error, "CRL not fetched; the last good one stays");
                    RETRY.min(refresh)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn get(&self) -> Result<Bytes, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let port = self.uri.port_u16();
        let port = port.unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((self.host.as_str(), port)).await;
        let stream = stream.map_err(|e| text(&e))?;
        match &self.tls {
            None => self.ask(stream).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone()).map_err(|e| text(&e))?;
                let stream = tls.connect(name, stream).await.map_err(|e| text(&e))?;
                self.ask(stream).await
            }
        }
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Bytes, String> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        let connection = tokio::spawn(connection);
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        let request = Request::get(path)
            .header(HOST, authority)
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|e| e.to_string())?;
        let read = match answer.status() {
            StatusCode::OK => whole(answer.into_body()).await,
            other => Err(format!("it answers {other}")),
        };
        connection.abort();
        read
    }

    fn keep(&self, bytes: &[u8]) -> io::Result<()> {
        if fs::read(&self.file).is_ok_and(|kept| kept == bytes) {
            return Ok(());
        }
        let draft = self.file.with_extension("draft");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, &self.file)
    }
}

async fn whole(body: Incoming) -> Result<Bytes, String> {
    let most = usize::try_from(MAX_FILE_LEN).unwrap_or(usize::MAX);
    if body.size_hint().lower() > MAX_FILE_LEN {
        return Err(format!("it has more than {most} bytes"));
    }
    let body = Limited::new(body, most).collect().await;
    Ok(body.map_err(|e| e.to_string())?.to_bytes())
}
