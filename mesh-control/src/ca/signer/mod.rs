//! Keys that sign certificates, wherever they are kept.

mod file;
mod kind;
mod pkcs11;
mod token;
mod uri;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mesh_core::identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose,
    PublicKeyData, SanType, SignatureAlgorithm, SigningKey,
};
use x509_parser::prelude::X509Certificate;

use super::fault::SignerFault;
pub use kind::KeyKind;
pub use pkcs11::bare_key;
pub use uri::{Pkcs11Uri, UriFault};

/// A key that signs certificates.
///
/// Backends differ in where the private key is; it need not be in this process. Signing may wait
/// for a device.
pub trait Signer: Send + Sync {
    /// The public key: the bits of subjectPublicKey.
    fn public_key(&self) -> &[u8];

    /// The algorithm of its signatures.
    fn algorithm(&self) -> &'static SignatureAlgorithm;

    /// Signs a message, which is hashed as the algorithm says.
    ///
    /// # Errors
    /// What was tried, and why it failed.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// A signature that was not made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SignError(pub String);

/// A signer as the certificate library takes it.
pub(super) struct IssuingKey(pub(super) Box<dyn Signer>);

impl PublicKeyData for IssuingKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for IssuingKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message).map_err(|error| {
            // The library's error has no room for it.
            tracing::error!(%error, "the signer failed");
            rcgen::Error::RemoteKeyError
        })
    }
}

/// Where a private key is.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// In a PEM file that is its owner's alone.
    File(PathBuf),
    /// In a token behind PKCS#11, which it never leaves.
    Pkcs11(Pkcs11Uri),
}

impl KeySource {
    /// Opens the key of a certificate.
    pub(super) fn open(
        &self,
        certificate: &X509Certificate<'_>,
    ) -> Result<Box<dyn Signer>, SignerFault> {
        let signer: Box<dyn Signer> = match self {
            Self::File(path) => Box::new(file::FileSigner::open(path)?),
            Self::Pkcs11(uri) => Box::new(pkcs11::TokenSigner::open(uri, certificate)?),
        };
        Ok(signer)
    }

    /// The files that a change of it shows in.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::File(path) => vec![path.clone()],
            Self::Pkcs11(uri) => uri.pin_file().into_iter().collect(),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Pkcs11(uri) => uri.fmt(f),
        }
    }
}

impl FromStr for KeySource {
    type Err = UriFault;

    fn from_str(text: &str) -> Result<Self, UriFault> {
        match text.starts_with(uri::SCHEME) {
            true => text.parse().map(Self::Pkcs11),
            false => Ok(Self::File(Path::new(text).to_owned())),
        }
    }
}

/// A signing request (PEM) for an intermediate with this key, for the operator's root to sign.
///
/// # Errors
/// A key that does not sign.
pub fn intermediate_request(
    signer: Box<dyn Signer>,
    trust_domain: &TrustDomain,
) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = format!("Nodemesh intermediate of {trust_domain}");
    params.distinguished_name.push(DnType::CommonName, name);
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serialize_request(&IssuingKey(signer))?.pem()
}
