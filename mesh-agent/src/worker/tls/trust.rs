//! What peers are held against: roots, the mesh's rules for a leaf, and what is revoked. Handshakes
//! and tunnels that stand are judged by the same code.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::certificate::{Leaf, Side};
use mesh_core::identity::{Identity, TrustDomain};
use mesh_core::reason::Reason;
use mesh_core::revocation::{CertificateId, Revocations, Revoked};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{Error, RootCertStore};

use super::super::fault::Fault;
use super::verify::{fault_of_tls, peer_fault, reason_of_leaf};
use super::{CredentialsError, now_s, tls_provider};

/// Roots and revocations of the mesh, and how certificates are held against them.
#[derive(Debug)]
pub(crate) struct Trust {
    trust_domain: TrustDomain,
    /// As they came.
    given: Vec<Vec<u8>>,
    roots: Arc<RootCertStore>,
    revocations: Revocations,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) clients: Arc<dyn ClientCertVerifier>,
}

/// What a chain says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) identity: Identity,
    /// Seconds since the epoch at which the first certificate of the chain ends.
    pub(crate) not_after_s: i64,
    /// Its own public key's bits.
    pub(crate) public_key: Vec<u8>,
}

impl Trust {
    /// Of roots (DER), for peers of a trust domain.
    pub(crate) fn new(
        given: Vec<Vec<u8>>,
        revocations: Revocations,
        trust_domain: &TrustDomain,
    ) -> Result<Arc<Self>, CredentialsError> {
        let mut store = RootCertStore::empty();
        let (added, _) =
            store.add_parsable_certificates(given.iter().cloned().map(CertificateDer::from));
        if added == 0 {
            return Err(CredentialsError::NoRoots);
        }
        let (roots, provider) = (Arc::new(store), Arc::new(tls_provider()));
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .clear_root_hint_subjects()
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Ok(Arc::new(Self {
            trust_domain: trust_domain.clone(),
            given,
            roots,
            revocations,
            provider,
            clients,
        }))
    }

    /// Whether it says just this.
    pub(crate) fn is(&self, roots: &[Vec<u8>], revocations: &Revocations) -> bool {
        self.given == roots && self.revocations == *revocations
    }

    /// What a peer's chain says, by the mesh's rules for a leaf; nothing else is checked.
    /// `side` is the peer's.
    pub(crate) fn read(&self, side: Side, chain: &[CertificateDer<'_>]) -> Result<Accepted, Fault> {
        let (leaf, intermediates) = split(chain)?;
        self.parse(side, leaf, intermediates)
            .map_err(|error| fault_of_tls(&error))
    }

    /// Holds a chain of a tunnel that stands against everything that [`Self::judge`] does.
    pub(crate) fn accept(
        &self,
        side: Side,
        chain: &[CertificateDer<'_>],
    ) -> Result<Accepted, Fault> {
        let (leaf, intermediates) = split(chain)?;
        let seconds = Duration::from_secs(u64::try_from(now_s()).unwrap_or(0));
        self.judge(
            side,
            leaf,
            intermediates,
            UnixTime::since_unix_epoch(seconds),
        )
        .map_err(|error| fault_of_tls(&error))
    }

    /// Holds a chain against the mesh's rules, the roots, the time, and what is revoked.
    pub(super) fn judge(
        &self,
        side: Side,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Accepted, Error> {
        let accepted = self.parse(side, leaf, intermediates)?;
        match side {
            Side::Server => verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(leaf)?,
                &self.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?,
            Side::Client => {
                let verified = self.clients.verify_client_cert(leaf, intermediates, now);
                verified.map(drop)?;
            }
        }
        let chain = [leaf].into_iter().chain(intermediates);
        match self.revoked(&accepted.identity, chain)? {
            None => Ok(accepted),
            Some(revoked) => {
                let peer = accepted.identity.to_string();
                Err(peer_fault(Reason::PeerRevoked, revoked, peer))
            }
        }
    }

    fn parse(
        &self,
        side: Side,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<Accepted, Error> {
        let broken = |fault| peer_fault(reason_of_leaf(&fault), fault, String::new());
        let leaf = Leaf::from_der(leaf).map_err(broken)?;
        let identity = leaf.workload(side, &self.trust_domain).map_err(broken)?;
        let mut not_after_s = leaf.not_after_s;
        for issuer in intermediates {
            // Whether it is needed for the chain is not asked: what is shown has to hold.
            let issuer = Leaf::from_der(issuer)
                .map_err(|fault| peer_fault(Reason::PeerUntrusted, fault, identity.to_string()))?;
            not_after_s = not_after_s.min(issuer.not_after_s);
        }
        Ok(Accepted {
            identity,
            not_after_s,
            public_key: leaf.public_key,
        })
    }

    /// What is revoked of who proves this identity by this chain, the leaf first.
    pub(super) fn revoked<'a>(
        &self,
        identity: &Identity,
        chain: impl IntoIterator<Item = &'a CertificateDer<'a>>,
    ) -> Result<Option<Revoked>, Error> {
        if self.revocations.is_empty() {
            return Ok(None);
        }
        let ids = chain.into_iter().map(|der| CertificateId::from_der(der));
        let ids: Vec<_> = ids
            .collect::<Result<_, _>>()
            .map_err(|fault| peer_fault(Reason::PeerUntrusted, fault, identity.to_string()))?;
        Ok(self.revocations.find(Some(identity), &ids))
    }
}

fn split<'a, 'b>(
    chain: &'a [CertificateDer<'b>],
) -> Result<(&'a CertificateDer<'b>, &'a [CertificateDer<'b>]), Fault> {
    let none = || Fault::new(Reason::PeerNoCertificate, "no certificate was presented");
    chain.split_first().ok_or_else(none)
}
