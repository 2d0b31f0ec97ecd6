//! Who calls: every service but joining answers nodes only, by their certificates, or by a token
//! that an attestor knows.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_core::certificate::{Leaf, LeafFault};
use mesh_core::identity::{Identity, NodeIdentity, TrustDomain};
use mesh_core::revocation::{CertificateId, Revoked};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::lease::Lease;
use super::meter::Meter;
use crate::attestor::{Attestors, Evidence};
use crate::audit::{Audit, Event};
use crate::refusal::{Refusal, Refused};
use crate::trust::Served;

/// Longest bearer token that is looked at, in bytes. A service account's has some 1,200.
const MAX_TOKEN_LEN: usize = 8 * 1024;

/// What a connection knows of its peer. TLS has verified the chain, the time and the right
/// to be a client; what the leaf says is checked per call.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// Its certificate, if it showed one.
    pub shown: Option<Arc<Result<Shown, LeafFault>>>,
    /// How long the connection may last.
    pub(super) lease: Lease,
}

/// The chain of certificates that a client showed.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its own.
    pub leaf: Leaf,
    /// All of them, its own first.
    pub chain: Arc<[CertificateId]>,
}

impl Shown {
    /// Reads what TLS has verified.
    ///
    /// # Errors
    /// A certificate that can't be read, whether or not the chain needs it.
    pub(super) fn new(chain: &[CertificateDer<'_>]) -> Option<Result<Self, LeafFault>> {
        let leaf = Leaf::from_der(chain.first()?);
        let ids = chain.iter().map(|der| CertificateId::from_der(der));
        let chain = ids.collect::<Result<_, _>>();
        Some(leaf.and_then(|leaf| {
            Ok(Self {
                leaf,
                chain: chain?,
            })
        }))
    }
}

/// A node that has been made sure of.
#[derive(Clone, Debug)]
pub struct NodeCaller {
    /// Which node.
    pub identity: NodeIdentity,
    /// When its certificate or token ends, in seconds since the epoch.
    pub not_after_s: i64,
    /// The certificates that it showed, its own first.
    pub chain: Arc<[CertificateId]>,
}

/// Lets nodes in, and nobody else.
pub struct Gate {
    /// The trust domain nodes must be of.
    trust_domain: TrustDomain,
    /// Who knows tokens.
    attestors: Attestors,
    /// How often an address may show a token.
    bearers: Meter,
    /// Where refusals go.
    audit: Arc<Audit>,
    /// What is revoked.
    trust: watch::Receiver<Arc<Served>>,
}

impl Gate {
    pub(super) fn new(
        trust_domain: TrustDomain,
        attestors: Attestors,
        bearers: Meter,
        audit: Arc<Audit>,
        trust: watch::Receiver<Arc<Served>>,
    ) -> Self {
        Self {
            trust_domain,
            attestors,
            bearers,
            audit,
            trust,
        }
    }

    /// The node that makes this call: by the connection's client certificate, or where it has
    /// none by the call's `authorization: Bearer <token>`.
    ///
    /// # Errors
    /// UNAUTHENTICATED without either, with one that has expired or a token that is not taken,
    /// PERMISSION_DENIED with a certificate that is not a node's, RESOURCE_EXHAUSTED for an
    /// address that shows tokens too often, UNAVAILABLE if a token could not be looked up.
    pub fn node<'a, T>(
        &'a self,
        request: &Request<T>,
    ) -> impl Future<Output = Result<NodeCaller, Status>> + Send + use<'a, T> {
        // Taken out of the request here: its body need not be Sync.
        let peer = request.extensions().get::<Peer>().cloned();
        let token = bearer(request.metadata());
        async move {
            let admitted = self.admit(peer.as_ref(), token.as_deref()).await;
            admitted.map_err(|refused| {
                let address = peer.map_or_else(|| "unknown".to_owned(), |p| p.address.to_string());
                self.audit
                    .refuse(Event::CallerRefused, &refused, "-", address);
                refused.into()
            })
        }
    }

    async fn admit(&self, peer: Option<&Peer>, token: Option<&str>) -> Result<NodeCaller, Refused> {
        let now_s = crate::now_s();
        match (peer, token) {
            (
                Some(Peer {
                    shown: Some(shown), ..
                }),
                _,
            ) => self.by_certificate(shown, now_s),
            (Some(peer), Some(token)) => self.by_token(peer, token, now_s).await,
            _ => Err(Refused::new(
                Refusal::NoCredential,
                "this call needs a node's client certificate, and the connection has none, \
                 nor the call a bearer token; join first",
            )),
        }
    }

    fn by_certificate(
        &self,
        shown: &Result<Shown, LeafFault>,
        now_s: i64,
    ) -> Result<NodeCaller, Refused> {
        let Shown { leaf, chain } = shown.as_ref().map_err(|fault| {
            let message = format!("the client certificate is unusable: {fault}");
            Refused::new(Refusal::CertificateUnusable, message)
        })?;
        if leaf.not_after_s <= now_s {
            return Err(Refused::new(
                Refusal::CertificateExpired,
                "the client certificate has expired since the connection was made; \
                 connect again with the renewed one",
            ));
        }
        let identity = leaf.node(&self.trust_domain).map_err(|fault| {
            let uris = leaf.uris.join(", ");
            let message = format!("the client certificate ({uris}) is not a node's: {fault}");
            Refused::new(Refusal::CertificateNotNode, message)
        })?;
        let caller = NodeCaller {
            identity,
            not_after_s: leaf.not_after_s,
            chain: chain.clone(),
        };
        self.not_revoked(&caller)?;
        Ok(caller)
    }

    fn not_revoked(&self, caller: &NodeCaller) -> Result<(), Refused> {
        let trust = self.trust.borrow();
        let node = caller.identity.node();
        let of_node = || Refused::new(Refusal::NodeRevoked, format!("node {node} is revoked"));
        if trust.revocations.nodes.contains(node) {
            return Err(of_node());
        }
        match trust.revocations.find(None, &caller.chain) {
            None => Ok(()),
            Some(Revoked::Node) => Err(of_node()),
            Some(what) => Err(Refused::new(Refusal::CertificateRevoked, what.to_string())),
        }
    }

    /// Whether certificates may be issued for an identity.
    ///
    /// # Errors
    /// If it is revoked.
    pub fn issuable(&self, identity: &Identity) -> Result<(), Refused> {
        if !self
            .trust
            .borrow()
            .revocations
            .identities
            .contains(identity)
        {
            return Ok(());
        }
        let what = format!("the identity {identity} is revoked");
        Err(Refused::new(Refusal::IdentityRevoked, what))
    }

    /// Ends when a node that was let in is revoked, with what it is told.
    pub async fn dismissed(&self, caller: &NodeCaller) -> Status {
        let mut trust = self.trust.clone();
        loop {
            trust.mark_unchanged();
            if let Err(refused) = self.not_revoked(caller) {
                let node = caller.identity.node();
                self.audit
                    .refuse(Event::CallerRefused, &refused, node, "stream");
                return refused.into();
            }
            if trust.changed().await.is_err() {
                // Nothing changes any more.
                return std::future::pending().await;
            }
        }
    }

    async fn by_token(&self, peer: &Peer, token: &str, now_s: i64) -> Result<NodeCaller, Refused> {
        let address = peer.address.ip().to_string();
        if let Err(refused) = self.bearers.admit(&address, Instant::now()) {
            return Err(Refused::new(Refusal::RateCaller, refused.to_string()));
        }
        let evidence = Evidence {
            token,
            node: None,
            now_s,
        };
        let attested = self.attestors.bearer(evidence).await?;
        let identity = NodeIdentity::new(self.trust_domain.clone(), &attested.node)
            .map_err(|fault| Refused::new(Refusal::NodeName, format!("node name: {fault}")))?;
        peer.lease.extend(attested.not_after_s);
        let caller = NodeCaller {
            identity,
            not_after_s: attested.not_after_s,
            chain: Arc::default(),
        };
        self.not_revoked(&caller)?;
        Ok(caller)
    }
}

/// The token of a call, if it bears one.
fn bearer(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let sound = scheme.eq_ignore_ascii_case("bearer") && token.len() <= MAX_TOKEN_LEN;
    sound.then(|| token.trim().to_owned())
}
