//! Certificate signing requests: of all a request says, only its public key counts. One that asks
//! for more than it will be given is refused, for its sender is mistaken or up to something.

use rcgen::{PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::refusal::{Refusal, Refused};

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
    /// Names that will not be granted.
    #[error("the request asks for the names {0}; without names, or with {1} alone, it is signed")]
    Names(String, String),
    /// A certificate that could sign others.
    #[error("the request asks for a signing certificate (CA:TRUE or keyCertSign)")]
    Ca,
}

impl From<RequestFault> for Refused {
    fn from(fault: RequestFault) -> Self {
        let refusal = match fault {
            RequestFault::TooLong(_) => Refusal::CsrTooLong,
            RequestFault::Malformed(_) => Refusal::CsrMalformed,
            RequestFault::Signature => Refusal::CsrSignature,
            RequestFault::Key => Refusal::CsrKey,
            RequestFault::Names(..) => Refusal::CsrNames,
            RequestFault::Ca => Refusal::CsrCa,
        };
        Self::new(refusal, fault.to_string())
    }
}

/// The public key of a request whose sender has proved to hold the private one.
pub struct RequestedKey(SubjectPublicKeyInfo);

impl RequestedKey {
    /// Takes the key out of a PEM request for a certificate with the one name `granted`, a URI.
    /// The subject, and wishes that harm nobody, are ignored.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn from_pem(text: &str, granted: &str) -> Result<Self, RequestFault> {
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
        check_wishes(&request, granted)?;
        Ok(Self(key))
    }
}

/// Refuses what asks for other names, or for the right to sign.
fn check_wishes(request: &X509CertificationRequest<'_>, granted: &str) -> Result<(), RequestFault> {
    let attributes = request.certification_request_info.iter_attributes();
    let extensions = attributes.filter_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
        _ => None,
    });
    let mut names = Vec::new();
    for extension in extensions.flatten() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(asked) => names.extend(&asked.general_names),
            ParsedExtension::BasicConstraints(asked) if asked.ca => return Err(RequestFault::Ca),
            ParsedExtension::KeyUsage(asked) if asked.key_cert_sign() || asked.crl_sign() => {
                return Err(RequestFault::Ca);
            }
            ParsedExtension::ParseError { error } => {
                let what = format!("extension {}: {error}", extension.oid);
                return Err(RequestFault::Malformed(what));
            }
            _ => {}
        }
    }
    match names.as_slice() {
        [] => Ok(()),
        [GeneralName::URI(uri)] if *uri == granted => Ok(()),
        names => {
            let shown: Vec<_> = names.iter().take(8).map(|n| word(n)).collect();
            Err(RequestFault::Names(shown.join(", "), granted.to_owned()))
        }
    }
}

/// A name as it can be shown: no longer than that.
fn word(name: &GeneralName<'_>) -> String {
    name.to_string().chars().take(256).collect()
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}
