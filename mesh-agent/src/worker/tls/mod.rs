//! The pod's credentials and the TLS configurations made of them.

mod read_ahead;
mod verify;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_core::certificate::{Leaf, LeafFault, Side};
use mesh_core::identity::{Identity, TrustDomain};
use mesh_core::reason::Reason;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::key::{KeyError, PodKey};

pub(crate) use read_ahead::ReadAhead;
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
    identity: Identity,
    not_before_s: i64,
    not_after_s: i64,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
    server: Arc<ServerConfig>,
}

impl Credentials {
    /// Puts key, chain (DER, leaf first) and roots (DER) together.
    pub(crate) fn new(
        key: &PodKey,
        chain: &[Vec<u8>],
        roots: &[Vec<u8>],
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
        let mut store = RootCertStore::empty();
        let (added, _) =
            store.add_parsable_certificates(roots.iter().cloned().map(CertificateDer::from));
        if added == 0 {
            return Err(CredentialsError::NoRoots);
        }
        let roots = Arc::new(store);
        let provider = Arc::new(tls_provider());
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.pkcs8()?));
        let signer = provider::sign::any_ecdsa_type(&der)?;
        let chain = chain.iter().cloned().map(CertificateDer::from).collect();
        let certified = Arc::new(CertifiedKey::new(chain, signer));
        certified.keys_match()?;
        let server = server_config(&provider, &roots, &certified, identity.trust_domain())?;
        Ok(Rc::new(Self {
            identity: identity.clone(),
            not_before_s: leaf.not_before_s,
            not_after_s: leaf.not_after_s,
            roots,
            provider,
            certified,
            server,
        }))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn validity_s(&self) -> (i64, i64) {
        (self.not_before_s, self.not_after_s)
    }

    /// For handshakes that others begin.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For one handshake with the workload that must prove `expected`.
    pub(crate) fn client(&self, expected: &Identity) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = verify::ServerVerifier {
            roots: self.roots.clone(),
            algorithms: self.provider.signature_verification_algorithms,
            trust_domain: self.identity.trust_domain().clone(),
            expected: expected.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        // A resumed session would skip the certificate, and with it CA:FALSE and expiry.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    certified: &Arc<CertifiedKey>,
    trust_domain: &TrustDomain,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let verifier = verify::ClientVerifier::new(provider, roots, trust_domain)?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
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

/// The identity a client has proven in a handshake that succeeded.
pub(crate) fn client_identity(
    certificates: Option<&[CertificateDer<'_>]>,
    trust_domain: &TrustDomain,
) -> Result<Identity, super::fault::Fault> {
    let leaf = certificates.and_then(<[_]>::first).ok_or_else(|| {
        super::fault::Fault::new(Reason::PeerNoCertificate, "no certificate was presented")
    })?;
    Leaf::from_der(leaf)
        .and_then(|leaf| leaf.workload(Side::Client, trust_domain))
        .map_err(|fault| super::fault::Fault::new(verify::reason_of_leaf(&fault), fault))
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
