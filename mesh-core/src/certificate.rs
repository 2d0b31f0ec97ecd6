//! What a leaf certificate says, and whether it may stand for a workload.
//!
//! Chains and signatures are the TLS library's business; here are the rules that the mesh
//! adds: exactly one SPIFFE ID, CA:FALSE, and the key usage of the side that shows it.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{Identity, IdentityError, TrustDomain};

/// Which side of a handshake shows the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server's certificate, as the client checks it.
    Server,
    /// The client's certificate, as the server checks it.
    Client,
}

/// Why a leaf can't stand for a workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafFault {
    /// Not a certificate.
    #[error("not an X.509 certificate: {0}")]
    Malformed(String),
    /// No URI name, or several.
    #[error("{0} URI names where an SVID has exactly one")]
    UriNames(usize),
    /// The URI is no workload's identity.
    #[error("not a workload's identity: {0}")]
    Identity(#[from] IdentityError),
    /// basicConstraints CA:TRUE, or the right to sign certificates.
    #[error("it is a signing certificate (CA:TRUE or keyCertSign)")]
    IsCa,
    /// keyUsage without digitalSignature, or extKeyUsage without this side's purpose.
    #[error("its key usage does not allow it to be a {0:?}'s certificate")]
    KeyUsage(Side),
    /// Another trust domain.
    #[error("it is of trust domain {0}, not {1}")]
    TrustDomain(TrustDomain, TrustDomain),
}

/// The facts of a leaf certificate that the mesh decides on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// All URI subject alternative names.
    pub uris: Vec<String>,
    /// basicConstraints CA:TRUE, or keyUsage keyCertSign or cRLSign.
    pub is_ca: bool,
    /// keyUsage has digitalSignature.
    pub digital_signature: bool,
    /// extKeyUsage has serverAuth.
    pub server_auth: bool,
    /// extKeyUsage has clientAuth.
    pub client_auth: bool,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_before_s: i64,
    /// Seconds since the epoch.
    pub not_after_s: i64,
}

impl Leaf {
    /// Reads the facts out of a DER certificate.
    ///
    /// # Errors
    /// [`LeafFault::Malformed`] for what is not one well-formed certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, LeafFault> {
        let malformed = |e: &dyn std::fmt::Display| LeafFault::Malformed(e.to_string());
        let (rest, cert) = X509Certificate::from_der(der).map_err(|e| malformed(&e))?;
        if !rest.is_empty() {
            return Err(LeafFault::Malformed("bytes after its end".to_owned()));
        }
        let constraints = cert.basic_constraints().map_err(|e| malformed(&e))?;
        let usage = cert.key_usage().map_err(|e| malformed(&e))?;
        let extended = cert.extended_key_usage().map_err(|e| malformed(&e))?;
        let names = cert.subject_alternative_name().map_err(|e| malformed(&e))?;
        let uris = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        Ok(Self {
            uris,
            is_ca: constraints.is_some_and(|c| c.value.ca)
                || usage
                    .as_ref()
                    .is_some_and(|u| u.value.key_cert_sign() || u.value.crl_sign()),
            digital_signature: usage.as_ref().is_some_and(|u| u.value.digital_signature()),
            server_auth: extended.as_ref().is_some_and(|e| e.value.server_auth),
            client_auth: extended.as_ref().is_some_and(|e| e.value.client_auth),
            serial: cert
                .raw_serial()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
            not_before_s: cert.validity().not_before.timestamp(),
            not_after_s: cert.validity().not_after.timestamp(),
        })
    }

    /// The workload identity this leaf proves when it is shown on `side` in `trust_domain`.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn workload(&self, side: Side, trust_domain: &TrustDomain) -> Result<Identity, LeafFault> {
        if self.is_ca {
            return Err(LeafFault::IsCa);
        }
        let purpose = match side {
            Side::Server => self.server_auth,
            Side::Client => self.client_auth,
        };
        if !self.digital_signature || !purpose {
            return Err(LeafFault::KeyUsage(side));
        }
        let [uri] = self.uris.as_slice() else {
            return Err(LeafFault::UriNames(self.uris.len()));
        };
        let identity: Identity = uri.parse()?;
        if identity.trust_domain() != trust_domain {
            let found = identity.trust_domain().clone();
            return Err(LeafFault::TrustDomain(found, trust_domain.clone()));
        }
        Ok(identity)
    }
}
