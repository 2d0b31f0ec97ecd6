//! The certificate authority: signs node, workload and its own server certificates with the
//! operator's intermediates. It never makes a self-signed certificate.

mod bundle;
mod fault;
mod files;
mod intermediate;
mod load;
mod reload;
mod request;
mod rollover;
pub mod signer;
mod source;

use std::sync::Arc;

use mesh_core::certificate::{Leaf, LeafFault, ValidityFault};
use mesh_core::identity::{Identity, NodeIdentity, TrustDomain};
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::sync::{Semaphore, watch};

use crate::refusal::{Refusal, Refused};
pub use bundle::TrustBundle;
pub use fault::SignerFault;
use intermediate::{Issuers, Template};
use load::Loaded;
pub use reload::Reloader;
pub use request::{RequestFault, RequestedKey};
pub use rollover::{Published, RecordFault};
pub use source::{IntermediateSource, NamespaceScope, ScopeFault, SignerFiles, SignerSources};

/// Longest life of a workload's certificate, and what a request gets that asks for nothing.
pub const WORKLOAD_LIFETIME_S: i64 = 3600;
/// Life of a node's certificate.
pub const NODE_LIFETIME_S: i64 = 24 * 3600;
/// Life of the control component's own certificate.
pub const SERVER_LIFETIME_S: i64 = 24 * 3600;
/// DNS name in the control component's own certificate, which node agents insist on.
pub const SERVER_NAME: &str = "nodemesh-control";

/// Signings at a time. A token signs for one at a time anyway.
const MAX_SIGNING: usize = 4;

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueFault {
    /// The signing chain or the lifetime does not allow it.
    #[error("can't issue a certificate: {0}")]
    Validity(#[from] ValidityFault),
    /// A lifetime below zero was asked for.
    #[error("a lifetime of {0} s was asked for; ask for a positive one, or 0 for the default")]
    Lifetime(i64),
    /// The cryptography library refused.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
    /// What was made does not read back as what it should be.
    #[error("the certificate that was made is not sound: {0}")]
    Unsound(#[from] LeafFault),
    /// The system's random numbers failed.
    #[error("the system gave no random numbers")]
    Random,
}

impl From<IssueFault> for Refused {
    fn from(fault: IssueFault) -> Self {
        let refusal = match fault {
            IssueFault::Lifetime(_) => Refusal::Lifetime,
            _ => Refusal::SignerFailed,
        };
        Self::new(refusal, fault.to_string())
    }
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM: the leaf, then the intermediates, without the root.
    pub chain_pem: Vec<String>,
    /// DER, the same certificates.
    pub chain: Vec<CertificateDer<'static>>,
    /// What the leaf says.
    pub leaf: Leaf,
}

/// The operator's intermediates and roots.
pub struct Authority {
    trust_domain: TrustDomain,
    /// Room for what signs at a time.
    room: Semaphore,
    issuers: watch::Sender<Arc<Issuers>>,
    bundle: watch::Sender<Arc<TrustBundle>>,
}

/// An intermediate that signs now, as operators are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerStatus {
    /// What it signs for: `default`, or namespaces.
    pub scope: String,
    /// Its subject.
    pub subject: String,
    /// The last second at which its whole chain is valid, since the epoch.
    pub not_after_s: i64,
}

impl Authority {
    /// Loads and checks a single signer with its key in a file.
    ///
    /// # Errors
    /// The first thing wrong with the files, the chain or the key.
    pub fn load(
        files: &SignerFiles<'_>,
        trust_domain: &TrustDomain,
        now_s: i64,
    ) -> Result<Self, SignerFault> {
        Self::open(&files.into(), trust_domain, now_s)
    }

    /// Loads and checks all signers.
    ///
    /// # Errors
    /// The first thing wrong with the files, a chain or a key.
    pub fn open(
        sources: &SignerSources,
        trust_domain: &TrustDomain,
        now_s: i64,
    ) -> Result<Self, SignerFault> {
        let Loaded { bundle, issuers } = load::load(sources, trust_domain, now_s)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            room: Semaphore::new(MAX_SIGNING),
            issuers: watch::Sender::new(Arc::new(issuers)),
            bundle: watch::Sender::new(bundle),
        })
    }

    /// The trust domain it signs for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots that nodes and workloads are to trust now, and their changes.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }

    /// All CAs: the roots, and what leads to them.
    #[must_use]
    pub fn authorities(&self) -> Vec<CertificateDer<'static>> {
        let mut all = self.roots().roots().to_vec();
        for (_, intermediate) in self.issuers().all() {
            all.extend(intermediate.chain.iter().cloned());
        }
        all
    }

    /// The roots that nodes and workloads are to trust now.
    #[must_use]
    pub fn roots(&self) -> Arc<TrustBundle> {
        self.bundle.borrow().clone()
    }

    /// The last second at which the whole chain is valid that signs for nodes, since the epoch.
    #[must_use]
    pub fn not_after_s(&self) -> i64 {
        self.issuers().default.not_after_s()
    }

    /// What signs now.
    #[must_use]
    pub fn status(&self) -> Vec<IssuerStatus> {
        let issuers = self.issuers();
        let shown = issuers.all().map(|(scope, intermediate)| IssuerStatus {
            scope,
            subject: intermediate.subject.clone(),
            not_after_s: intermediate.not_after_s(),
        });
        shown.collect()
    }

    /// Resolves when other intermediates sign than when it was called, or the authority is gone.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut issuers = self.issuers.subscribe();
        async move {
            // Without an authority nothing will sign.
            let _ = issuers.changed().await;
        }
    }

    /// Signs away from the thread that serves: a token may take its time.
    ///
    /// # Errors
    /// What `work` says, or that the component is stopping.
    pub async fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let stopping = || Refused::new(Refusal::SignerFailed, "the control component is stopping");
        let _place = self.room.acquire().await.map_err(|_| stopping())?;
        let authority = self.clone();
        match tokio::task::spawn_blocking(move || work(&authority)).await {
            Ok(done) => done,
            Err(ended) if ended.is_cancelled() => Err(stopping()),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    fn issuers(&self) -> Arc<Issuers> {
        self.issuers.borrow().clone()
    }

    /// Issues an SVID for `identity`, through a node, that lives `lifetime_s` (0: the default;
    /// never longer than [`WORKLOAD_LIFETIME_S`]).
    ///
    /// # Errors
    /// A signing chain that is not valid now, or a negative lifetime.
    pub fn issue_workload(
        &self,
        identity: &Identity,
        node: &NodeIdentity,
        key: &RequestedKey,
        lifetime_s: i64,
        now_s: i64,
    ) -> Result<Issued, IssueFault> {
        let lifetime_s = match lifetime_s {
            0 => WORKLOAD_LIFETIME_S,
            s if s < 0 => return Err(IssueFault::Lifetime(s)),
            s => s.min(WORKLOAD_LIFETIME_S),
        };
        let template = Template {
            names: vec![SanType::URI(identity.to_string().try_into()?)],
            purposes: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            lifetime_s,
            node: Some(node),
        };
        let issuers = self.issuers();
        issuers.of(identity.namespace()).issue(template, key, now_s)
    }

    /// Issues a node's certificate.
    ///
    /// # Errors
    /// A signing chain that is not valid now.
    pub fn issue_node(
        &self,
        node: &NodeIdentity,
        key: &RequestedKey,
        now_s: i64,
    ) -> Result<Issued, IssueFault> {
        let template = Template {
            names: vec![SanType::URI(node.to_string().try_into()?)],
            purposes: vec![ExtendedKeyUsagePurpose::ClientAuth],
            lifetime_s: NODE_LIFETIME_S,
            node: Some(node),
        };
        self.issuers().default.issue(template, key, now_s)
    }

    /// Makes a key and issues the control component's own server certificate for it.
    ///
    /// # Errors
    /// A signing chain that is not valid now, or a key that can't be made.
    pub fn issue_server(&self, now_s: i64) -> Result<(Issued, Arc<CertifiedKey>), IssueFault> {
        let default = self.issuers().default.clone();
        default.issue_server(&self.trust_domain, now_s)
    }
}

fn encode_pem(certificate: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate), config)
}
