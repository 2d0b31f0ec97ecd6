//! Checks of the peer's certificate, with a reason for each way to fail.

use std::io;
use std::sync::Arc;

use mesh_core::certificate::{Leaf, LeafFault, Side};
use mesh_core::identity::{Identity, TrustDomain};
use mesh_core::reason::Reason;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::super::fault::Fault;

/// A rule of the mesh that the peer's leaf breaks, as it travels through the TLS library.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
struct PeerFault {
    reason: Reason,
    detail: String,
    peer: String,
}

fn peer_fault(reason: Reason, detail: impl std::fmt::Display, peer: String) -> Error {
    let fault = PeerFault {
        reason,
        detail: detail.to_string(),
        peer,
    };
    CertificateError::Other(OtherError(Arc::new(fault))).into()
}

pub(super) fn reason_of_leaf(fault: &LeafFault) -> Reason {
    match fault {
        LeafFault::Malformed(_) | LeafFault::UriNames(_) | LeafFault::Identity(_) => {
            Reason::PeerNoIdentity
        }
        LeafFault::IsCa => Reason::PeerIsCa,
        LeafFault::KeyUsage(_) => Reason::PeerKeyUsage,
        LeafFault::TrustDomain(..) => Reason::PeerTrustDomain,
    }
}

fn check_leaf(der: &[u8], side: Side, trust_domain: &TrustDomain) -> Result<Identity, Error> {
    let leaf = Leaf::from_der(der)
        .map_err(|fault| peer_fault(reason_of_leaf(&fault), fault, String::new()))?;
    leaf.workload(side, trust_domain)
        .map_err(|fault| peer_fault(reason_of_leaf(&fault), fault, String::new()))
}

/// Checks a server: chain, the mesh's rules, and that it is who discovery says.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) trust_domain: TrustDomain,
    pub(super) expected: Identity,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let identity = check_leaf(end_entity, Side::Server, &self.trust_domain)?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if identity != self.expected {
            let detail = format!("it is {identity}, discovery gives {}", self.expected);
            return Err(peer_fault(
                Reason::PeerIdentity,
                detail,
                identity.to_string(),
            ));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks a client: chain and the mesh's rules. Who it is, policy decides.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

impl ClientVerifier {
    pub(super) fn new(
        provider: &Arc<CryptoProvider>,
        roots: &Arc<RootCertStore>,
        trust_domain: &TrustDomain,
    ) -> Result<Self, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .clear_root_hint_subjects()
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Ok(Self {
            chain,
            trust_domain: trust_domain.clone(),
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_leaf(end_entity, Side::Client, &self.trust_domain)?;
        self.chain
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Why a handshake (or what came right after it) failed.
pub(crate) fn fault_of(error: &io::Error) -> Fault {
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else {
        return Fault::new(Reason::TunnelTls, error);
    };
    match tls {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            match other.0.downcast_ref::<PeerFault>() {
                Some(fault) => Fault::new(fault.reason, fault).of_peer(&fault.peer),
                None => Fault::new(Reason::PeerUntrusted, tls),
            }
        }
        Error::InvalidCertificate(fault) => Fault::new(reason_of_chain(fault), tls),
        Error::NoCertificatesPresented => Fault::new(Reason::PeerNoCertificate, tls),
        _ => Fault::new(Reason::TunnelTls, tls),
    }
}

fn reason_of_chain(error: &CertificateError) -> Reason {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
            Reason::PeerExpired
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => Reason::PeerKeyUsage,
        _ => Reason::PeerUntrusted,
    }
}
