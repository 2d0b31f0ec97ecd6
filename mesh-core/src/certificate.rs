//! What a leaf certificate says, whether it may stand for a workload or a node, and how long
//! a new one may live.
//!
//! Chains and signatures are the TLS library's business; here are the rules that the mesh
//! adds: exactly one SPIFFE ID, CA:FALSE, and the key usage of the side that shows it.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{Identity, IdentityError, NodeIdentity, TrustDomain};
use crate::revocation::CertificateId;

/// Which side of a handshake shows the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server's certificate, as the client checks it.
    Server,
    /// The client's certificate, as the server checks it.
    Client,
}

/// Why a leaf can't stand for a workload or a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafFault {
    /// Not a certificate.
    #[error("not an X.509 certificate: {0}")]
    Malformed(String),
    /// No URI name, or several.
    #[error("{0} URI names where an SVID has exactly one")]
    UriNames(usize),
    /// The URI is no identity of the kind that was asked for.
    #[error("its URI name is not the identity asked for: {0}")]
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
    /// What revocation knows it by.
    pub id: CertificateId,
    /// The public key's bits, as the certificate has them.
    pub public_key: Vec<u8>,
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
            id: CertificateId::of(&cert),
            public_key: cert.public_key().subject_public_key.data.to_vec(),
            not_before_s: cert.validity().not_before.timestamp(),
            not_after_s: cert.validity().not_after.timestamp(),
        })
    }

    /// The workload identity this leaf proves when it is shown on `side` in `trust_domain`.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn workload(&self, side: Side, trust_domain: &TrustDomain) -> Result<Identity, LeafFault> {
        let identity: Identity = self.sole_uri(side)?.parse()?;
        same_domain(identity.trust_domain(), trust_domain)?;
        Ok(identity)
    }

    /// The node identity this leaf proves when a node agent shows it as a client in
    /// `trust_domain`. A workload's certificate never passes: its path is another.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn node(&self, trust_domain: &TrustDomain) -> Result<NodeIdentity, LeafFault> {
        let identity: NodeIdentity = self.sole_uri(Side::Client)?.parse()?;
        same_domain(identity.trust_domain(), trust_domain)?;
        Ok(identity)
    }

    fn sole_uri(&self, side: Side) -> Result<&str, LeafFault> {
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
        match self.uris.as_slice() {
            [uri] => Ok(uri),
            uris => Err(LeafFault::UriNames(uris.len())),
        }
    }
}

fn same_domain(found: &TrustDomain, expected: &TrustDomain) -> Result<(), LeafFault> {
    if found == expected {
        return Ok(());
    }
    Err(LeafFault::TrustDomain(found.clone(), expected.clone()))
}

/// How far a new certificate's start lies in the past, for peers whose clock is behind.
pub const CLOCK_SKEW_S: i64 = 300;

/// From when to when a certificate holds, both inclusive, in seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before_s: i64,
    /// Last second.
    pub not_after_s: i64,
}

/// Why no certificate can be issued now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidityFault {
    /// One of the issuers is past its end.
    #[error("a certificate of the signing chain expired at {0} (seconds since the epoch)")]
    IssuerExpired(i64),
    /// One of the issuers is before its start.
    #[error("a certificate of the signing chain is not valid before {0} (seconds since the epoch)")]
    IssuerNotYetValid(i64),
    /// No time at all was asked for.
    #[error("a lifetime of {0} s was asked for; it must be positive")]
    Lifetime(i64),
}

/// The validity of a certificate issued at `now_s` for `lifetime_s`: it begins
/// [`CLOCK_SKEW_S`] early, and neither begins before nor outlives any of its `issuers`.
///
/// # Errors
/// An issuer that is not valid now, or a lifetime that is none.
pub fn leaf_validity(
    now_s: i64,
    lifetime_s: i64,
    issuers: &[Validity],
) -> Result<Validity, ValidityFault> {
    if lifetime_s <= 0 {
        return Err(ValidityFault::Lifetime(lifetime_s));
    }
    let mut validity = Validity {
        not_before_s: now_s.saturating_sub(CLOCK_SKEW_S),
        not_after_s: now_s.saturating_add(lifetime_s),
    };
    for issuer in issuers {
        if issuer.not_before_s > now_s {
            return Err(ValidityFault::IssuerNotYetValid(issuer.not_before_s));
        }
        if issuer.not_after_s <= now_s {
            return Err(ValidityFault::IssuerExpired(issuer.not_after_s));
        }
        validity.not_before_s = validity.not_before_s.max(issuer.not_before_s);
        validity.not_after_s = validity.not_after_s.min(issuer.not_after_s);
    }
    Ok(validity)
}
