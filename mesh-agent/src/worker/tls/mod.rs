//! The pod's credentials and the TLS configurations made of them.

mod read_ahead;
mod trust;
mod verify;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_core::certificate::{Leaf, LeafFault, Side};
use mesh_core::identity::Identity;
use mesh_core::reason::Reason;
use mesh_core::revocation::Revoked;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use super::fault::Fault;
use super::key::{KeyError, PodKey};

pub(crate) use read_ahead::ReadAhead;
pub(crate) use trust::Trust;
pub(crate) use verify::fault_of;

/// Plaintext that may wait in one TLS connection for its socket, in bytes.
pub(crate) const WRITE_BUFFER: usize = 256 * 1024;

/// Why a certificate that was pushed can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("the trust bundle holds no usable root")]
    NoRoots,
    #[error("the chain is empty")]
    EmptyChain,
    #[error("the leaf can't stand for this pod: {0}")]
    Leaf(#[from] LeafFault),
    #[error("the leaf is of {0}, this pod is {1}")]
    Identity(Identity, Identity),
    #[error("the leaf is not valid now (from {0} to {1}, seconds since the epoch)")]
    Validity(i64, i64),
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("TLS refuses it: {0}")]
    Tls(#[from] rustls::Error),
}

/// What the pod proves itself and checks others with.
pub(crate) struct Credentials {
    not_before_s: i64,
    not_after_s: i64,
    /// What of it is revoked, if anything is.
    revoked: Option<Revoked>,
    trust: Arc<Trust>,
    certified: Arc<CertifiedKey>,
    server: Arc<ServerConfig>,
}

impl Credentials {
    /// Puts key, chain (DER, leaf first) and what others are held against together.
    pub(crate) fn new(
        key: &PodKey,
        chain: &[Vec<u8>],
        trust: &Arc<Trust>,
        identity: &Identity,
        now_s: i64,
    ) -> Result<Rc<Self>, CredentialsError> {
        let leaf = Leaf::from_der(chain.first().ok_or(CredentialsError::EmptyChain)?)?;
        for side in [Side::Server, Side::Client] {
            let found = leaf.workload(side, identity.trust_domain())?;
            if found != *identity {
                return Err(CredentialsError::Identity(found, identity.clone()));
            }
        }
        if !(leaf.not_before_s..leaf.not_after_s).contains(&now_s) {
            return Err(CredentialsError::Validity(
                leaf.not_before_s,
                leaf.not_after_s,
            ));
        }
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.pkcs8()?));
        let signer = provider::sign::any_ecdsa_type(&der)?;
        let chain: Vec<_> = chain.iter().cloned().map(CertificateDer::from).collect();
        let revoked = trust.revoked(identity, &chain)?;
        let certified = Arc::new(CertifiedKey::new(chain, signer));
        certified.keys_match()?;
        let server = server_config(trust, &certified)?;
        Ok(Rc::new(Self {
            not_before_s: leaf.not_before_s,
            not_after_s: leaf.not_after_s,
            revoked,
            trust: trust.clone(),
            certified,
            server,
        }))
    }

    pub(crate) fn validity_s(&self) -> (i64, i64) {
        (self.not_before_s, self.not_after_s)
    }

    pub(crate) fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Certificate, with its chain, and key.
    pub(crate) fn certified(&self) -> &CertifiedKey {
        &self.certified
    }

    /// Whether new tunnels show the same certificate with either.
    pub(crate) fn same_certificate(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }

    /// Whether nothing of them is revoked.
    pub(crate) fn not_revoked(&self) -> Result<(), Fault> {
        let revoked = self.revoked.as_ref();
        revoked.map_or(Ok(()), |what| Err(Fault::new(Reason::OwnRevoked, what)))
    }

    /// Whether they may be used now.
    pub(crate) fn valid(&self, now_s: i64) -> Result<(), Fault> {
        self.not_revoked()?;
        let (from, to) = (self.not_before_s, self.not_after_s);
        if !(from..to).contains(&now_s) {
            let detail = format!("valid from {from} to {to} (seconds since the epoch)");
            return Err(Fault::new(Reason::NoCertificate, detail));
        }
        Ok(())
    }

    /// For handshakes that others begin.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For one handshake with the workload that must prove `expected`.
    pub(crate) fn client(&self, expected: &Identity) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = verify::ServerVerifier {
            trust: self.trust.clone(),
            expected: expected.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(self.trust.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = protocols();
        config.enable_sni = false;
        // A resumed session would skip the certificate, and with it CA:FALSE and expiry.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn server_config(
    trust: &Arc<Trust>,
    certified: &Arc<CertifiedKey>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let verifier = verify::ClientVerifier {
        trust: trust.clone(),
    };
    let mut config = ServerConfig::builder_with_provider(trust.provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = protocols();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// HTTP/2 with a stream in each tunnel for what the two workers say to each other
/// ([`super::proofs`]); a peer that knows nothing of it takes plain HTTP/2.
pub(super) const WITH_PROOFS: &[u8] = b"nodemesh-h2/1";

/// What ALPN offers and takes, best first.
fn protocols() -> Vec<Vec<u8>> {
    vec![WITH_PROOFS.to_vec(), b"h2".to_vec()]
}

/// Whether the two ends of a connection prove new certificates to each other while it stands.
pub(crate) fn proves_anew<T>(connection: &rustls::ConnectionCommon<T>) -> bool {
    connection.alpn_protocol() == Some(WITH_PROOFS)
}

/// TLS 1.3 suites and key exchanges of the mesh, best first.
fn tls_provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![
            provider::kx_group::X25519MLKEM768,
            provider::kx_group::X25519,
            provider::kx_group::SECP256R1,
        ],
        ..provider::default_provider()
    }
}

/// Seconds since the epoch.
pub(crate) fn now_s() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or(0)
}

/// Protocol version, cipher suite and key exchange of a handshake that is done.
pub(crate) fn parameters<T>(connection: &rustls::ConnectionCommon<T>) -> String {
    let name = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    let version = connection.protocol_version().map(|v| format!("{v:?}"));
    let suite = connection.negotiated_cipher_suite();
    let suite = suite.map(|s| format!("{:?}", s.suite()));
    let exchange = connection.negotiated_key_exchange_group();
    let exchange = exchange.map(|g| format!("{:?}", g.name()));
    format!("{} {} {}", name(version), name(suite), name(exchange))
}
