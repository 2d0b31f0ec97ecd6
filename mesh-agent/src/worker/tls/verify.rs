//! Checks of the peer's certificate, with a reason for each way to fail.

use std::io;
use std::sync::Arc;

use mesh_core::certificate::{LeafFault, Side};
use mesh_core::identity::Identity;
use mesh_core::reason::Reason;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::super::fault::Fault;
use super::trust::Trust;

/// A rule of the mesh that the peer's leaf breaks, as it travels through the TLS library.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
struct PeerFault {
    reason: Reason,
    detail: String,
    peer: String,
}

pub(super) fn peer_fault(reason: Reason, detail: impl std::fmt::Display, peer: String) -> Error {
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

/// Checks a server: all that [`Trust`] asks, and that it is who discovery says.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) trust: Arc<Trust>,
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
        let accepted = self
            .trust
            .judge(Side::Server, end_entity, intermediates, now)?;
        let identity = accepted.identity;
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
        let algorithms = &self.trust.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.trust.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Checks a client: all that [`Trust`] asks. Who it is, policy decides.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) trust: Arc<Trust>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trust.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust
            .judge(Side::Client, end_entity, intermediates, now)
            .map(|_| ClientCertVerified::assertion())
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
        self.trust
            .clients
            .verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.clients.supported_verify_schemes()
    }
}

/// Why a handshake (or what came right after it) failed.
pub(crate) fn fault_of(error: &io::Error) -> Fault {
    match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(tls) => fault_of_tls(tls),
        None => Fault::new(Reason::TunnelTls, error),
    }
}

/// The same of an error of the TLS library.
pub(super) fn fault_of_tls(tls: &Error) -> Fault {
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
