//! The node's own key and certificate: joining by a single-use token, keeping both in the
//! state folder, renewing in time.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_api::node::node_service_client::NodeServiceClient;
use mesh_api::node::{JoinRequest, NodeCertificate, RenewRequest};
use mesh_core::certificate::Leaf;
use mesh_core::identity::{NodeIdentity, TrustDomain};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::config::Config;
use super::control::Replica;
use super::trust::Bundle;

/// DNS name in the control component's certificate.
pub(super) const CONTROL_NAME: &str = "nodemesh-control";
const KEY_FILE: &str = "node.key";
const CERTIFICATE_FILE: &str = "node.pem";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Why the node has no usable certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error("{action} {path}: {source}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "this node has no valid certificate in {state_dir} ({why}), and {token}: make a token with `mesh-control token create --node {node}` and give it by --join-token-file"
    )]
    NoToken {
        state_dir: PathBuf,
        why: String,
        token: String,
        node: String,
    },
    #[error("control refused to let node {node} join: {message}")]
    Refused { node: String, message: String },
    #[error("control can't be reached at {address}: {why}")]
    Unreachable { address: SocketAddr, why: String },
    #[error("no address of control is known: --control gives names, and none could be looked up")]
    NoAddress,
    #[error("the certificate that control gave can't be used: {0}")]
    Unusable(String),
    #[error("making the node's key: {0}")]
    Key(#[from] rcgen::Error),
}

/// The node's certificate with its key.
#[derive(Clone)]
pub(super) struct NodeCredential {
    key_pem: String,
    chain_pem: String,
    pub(super) not_before_s: i64,
    pub(super) not_after_s: i64,
}

impl std::fmt::Debug for NodeCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeCredential until {}", self.not_after_s)
    }
}

/// Seconds since the epoch.
pub(super) fn now_s() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl NodeCredential {
    /// When to renew: at two thirds of its life.
    pub(super) fn renew_at_s(&self) -> i64 {
        self.not_before_s + (self.not_after_s - self.not_before_s) / 3 * 2
    }

    fn read(key_pem: String, chain_pem: String, node: &str) -> Result<Self, String> {
        let leaf = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .next()
            .ok_or("no certificate")?
            .map_err(|e| e.to_string())?;
        let leaf = Leaf::from_der(&leaf).map_err(|e| e.to_string())?;
        let [uri] = leaf.uris.as_slice() else {
            return Err(format!("{} URI names, not one", leaf.uris.len()));
        };
        let identity: NodeIdentity = uri.parse().map_err(|e| format!("{e}"))?;
        if identity.node() != node {
            return Err(format!(
                "it is node {:?}'s, not {node:?}'s",
                identity.node()
            ));
        }
        if leaf.not_after_s <= now_s() {
            return Err("it has expired".to_owned());
        }
        Ok(Self {
            key_pem,
            chain_pem,
            not_before_s: leaf.not_before_s,
            not_after_s: leaf.not_after_s,
        })
    }

    /// The one that an earlier run left, if it is still good.
    pub(super) fn load(state_dir: &Path, node: &str) -> Result<Self, String> {
        let read = |name| {
            let path = state_dir.join(name);
            fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
        };
        Self::read(read(KEY_FILE)?, read(CERTIFICATE_FILE)?, node)
    }

    fn store(&self, state_dir: &Path) -> Result<(), JoinError> {
        // Key before certificate: a certificate without its key would look like a good pair.
        write_private(&state_dir.join(KEY_FILE), self.key_pem.as_bytes())?;
        write_private(&state_dir.join(CERTIFICATE_FILE), self.chain_pem.as_bytes())
    }

    /// A channel that shows this certificate.
    pub(super) fn channel(
        &self,
        replica: SocketAddr,
        trusted: &Bundle,
    ) -> Result<Channel, JoinError> {
        let identity = Identity::from_pem(&self.chain_pem, &self.key_pem);
        Ok(endpoint(replica, trusted, Some(identity))?.connect_lazy())
    }
}

/// Makes the state folder, for root's eyes only.
pub(super) fn make_state_dir(state_dir: &Path) -> Result<(), JoinError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(state_dir).map_err(|source| JoinError::File {
        action: "making",
        path: state_dir.to_owned(),
        source,
    })
}

/// Writes a file of mode 0600 as a whole: into a neighbour, synced, then renamed.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), JoinError> {
    write_whole(path, bytes, fs::File::sync_all)
}

/// The same for a file that means nothing after the machine was booted: the disk is not waited for.
pub(super) fn write_until_boot(path: &Path, bytes: &[u8]) -> Result<(), JoinError> {
    write_whole(path, bytes, |_| Ok(()))
}

fn write_whole(
    path: &Path,
    bytes: &[u8],
    sync: impl FnOnce(&fs::File) -> io::Result<()>,
) -> Result<(), JoinError> {
    let neighbour = path.with_extension("new");
    let write = || {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&neighbour)?;
        file.write_all(bytes)?;
        sync(&file)?;
        fs::rename(&neighbour, path)
    };
    write().map_err(|source| JoinError::File {
        action: "writing",
        path: path.to_owned(),
        source,
    })
}

fn endpoint(
    replica: SocketAddr,
    trusted: &Bundle,
    identity: Option<Identity>,
) -> Result<Endpoint, JoinError> {
    let mut tls = ClientTlsConfig::new()
        .domain_name(CONTROL_NAME)
        .ca_certificate(Certificate::from_pem(trusted.roots_pem()));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let endpoint = Endpoint::from_shared(format!("https://{replica}"))
        .map_err(|e| JoinError::Unusable(chain(&e)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Some(KEEP_ALIVE))
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    endpoint
        .tls_config(tls)
        .map_err(|e| JoinError::Unusable(chain(&e)))
}

/// An error with its causes: tonic's own text is only "transport error".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// A status with its causes.
pub(super) fn explain(status: &tonic::Status) -> String {
    let causes = std::error::Error::source(status).map(chain);
    match causes {
        Some(causes) => format!("{}: {causes}", status.message()),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn call_failed(config: &Config, address: SocketAddr, status: &tonic::Status) -> JoinError {
    use tonic::Code;
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::NotFound => {
            JoinError::Refused {
                node: config.node.clone(),
                message: status.message().to_owned(),
            }
        }
        _ => JoinError::Unreachable {
            address,
            why: explain(status),
        },
    }
}

fn signing_request() -> Result<(KeyPair, String), JoinError> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default()
        .serialize_request(&key)?
        .pem()?;
    Ok((key, csr))
}

fn accept(
    config: &Config,
    key: &KeyPair,
    given: &NodeCertificate,
) -> Result<NodeCredential, JoinError> {
    let chain_pem = given.cert_chain.join("\n");
    let credential = NodeCredential::read(key.serialize_pem(), chain_pem, &config.node)
        .map_err(JoinError::Unusable)?;
    credential.store(&config.state_dir)?;
    Ok(credential)
}

/// Joins with the token. The token is spent when control has answered, so the certificate
/// is stored before anything else is done.
pub(super) async fn join(
    config: &Config,
    replica: SocketAddr,
    trusted: &Bundle,
    why: &str,
) -> Result<NodeCredential, JoinError> {
    let no_token = |token: String| JoinError::NoToken {
        state_dir: config.state_dir.clone(),
        why: why.to_owned(),
        token,
        node: config.node.clone(),
    };
    let path = config
        .join_token_file
        .as_ref()
        .ok_or_else(|| no_token("no --join-token-file is given".to_owned()))?;
    let token = fs::read_to_string(path).map_err(|e| {
        no_token(format!(
            "the token file {} can't be read: {e}",
            path.display()
        ))
    })?;
    let (key, csr) = signing_request()?;
    let channel = endpoint(replica, trusted, None)?
        .timeout(CALL_TIMEOUT)
        .connect()
        .await
        .map_err(|e| JoinError::Unreachable {
            address: replica,
            why: chain(&e),
        })?;
    let request = JoinRequest {
        token: token.trim().to_owned(),
        node: config.node.clone(),
        csr,
    };
    let answer = NodeServiceClient::new(channel).join(request).await;
    let failed = |status| call_failed(config, replica, &status);
    accept(config, &key, &answer.map_err(failed)?.into_inner())
}

/// Renews the node's certificate, with a new key.
pub(super) async fn renew(config: &Config, replica: Replica) -> Result<NodeCredential, JoinError> {
    let (key, csr) = signing_request()?;
    let mut request = tonic::Request::new(RenewRequest { csr });
    request.set_timeout(CALL_TIMEOUT);
    let answer = NodeServiceClient::new(replica.channel).renew(request).await;
    let failed = |status| call_failed(config, replica.address, &status);
    accept(config, &key, &answer.map_err(failed)?.into_inner())
}

/// The trust domain by the node's last certificate, expired or not.
pub(super) fn last_trust_domain(state_dir: &Path) -> Result<TrustDomain, String> {
    let path = state_dir.join(CERTIFICATE_FILE);
    let pem = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let leaf = CertificateDer::from_pem_slice(&pem).map_err(|e| e.to_string())?;
    let leaf = Leaf::from_der(&leaf).map_err(|e| e.to_string())?;
    let uri = leaf.uris.first().ok_or("no URI name")?;
    let identity: NodeIdentity = uri.parse().map_err(|e| format!("{e}"))?;
    Ok(identity.trust_domain().clone())
}
