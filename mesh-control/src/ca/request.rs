//! Certificate signing requests: of all a request says, only its public key counts.

use rcgen::{PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Longest request that is looked at, in bytes. One with a P-384 key and names has 600.
const MAX_REQUEST_LEN: usize = 16 * 1024;

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Too long.
    #[error("the request has {0} bytes; at most 16384 are looked at")]
    TooLong(usize),
    /// Not PEM, or not PKCS#10.
    #[error("not a PEM certificate request (PKCS#10): {0}")]
    Malformed(String),
    /// The caller does not hold the key.
    #[error("the request's own signature does not verify: its sender does not hold the key")]
    Signature,
    /// A kind of key the mesh does not use.
    #[error("the request's key is not ECDSA P-256 or P-384, the only kinds the mesh signs")]
    Key,
}

/// The public key of a request whose sender has proved to hold the private one.
pub struct RequestedKey(SubjectPublicKeyInfo);

impl RequestedKey {
    /// Takes the key out of a PEM request. Names and extensions in it are ignored.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn from_pem(text: &str) -> Result<Self, RequestFault> {
        if text.len() > MAX_REQUEST_LEN {
            return Err(RequestFault::TooLong(text.len()));
        }
        let malformed = |e: &dyn std::fmt::Display| RequestFault::Malformed(e.to_string());
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .map_err(|e| malformed(&e))?;
        let (rest, request) =
            X509CertificationRequest::from_der(&der).map_err(|e| malformed(&e))?;
        if !rest.is_empty() {
            return Err(RequestFault::Malformed("bytes after its end".to_owned()));
        }
        let spki = request.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| RequestFault::Key)?;
        let accepted: [&SignatureAlgorithm; 2] = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
        ];
        if !accepted.contains(&key.algorithm()) {
            return Err(RequestFault::Key);
        }
        request
            .verify_signature()
            .map_err(|_| RequestFault::Signature)?;
        Ok(Self(key))
    }
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}
