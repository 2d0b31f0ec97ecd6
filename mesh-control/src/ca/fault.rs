//! Why a signer is refused.

use std::io;
use std::path::{Path, PathBuf};

use mesh_core::identity::TrustDomain;

/// Why a signer is refused.
#[derive(Debug, thiserror::Error)]
pub enum SignerFault {
    /// A file can't be read.
    #[error("can't read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file has no usable PEM of the kind it should have.
    #[error("{path} is not usable: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A key or PIN can be read by others than its owner.
    #[error(
        "the secret {path} has mode {mode:04o}: others than its owner can use it; run: chmod 600 {path}"
    )]
    KeyPermissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The signer is its own issuer.
    #[error(
        "the signing certificate in {path} ({subject}) is self-signed: give an intermediate that your root has signed; the root's key does not belong here"
    )]
    SelfSigned {
        /// The file.
        path: PathBuf,
        /// Its subject.
        subject: String,
    },
    /// Not a certificate that may sign.
    #[error(
        "{subject} in {path} is not a CA: it needs basicConstraints CA:TRUE and, where it has a key usage, keyCertSign"
    )]
    NotCa {
        /// The file.
        path: PathBuf,
        /// Its subject.
        subject: String,
    },
    /// Past its end.
    #[error("{subject} in {path} expired on {when}: renew it")]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its subject.
        subject: String,
        /// Its end.
        when: String,
    },
    /// Before its start.
    #[error("{subject} in {path} is not valid before {when}: check this machine's clock")]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Its subject.
        subject: String,
        /// Its start.
        when: String,
    },
    /// The chain does not lead to a root.
    #[error(
        "{subject} in {path} does not chain to {root}: it was issued by {issuer}, and no certificate there or next in {path} has signed it"
    )]
    NotChained {
        /// The chain's file.
        path: PathBuf,
        /// Where the chain breaks.
        subject: String,
        /// Who should have signed it.
        issuer: String,
        /// The roots' file.
        root: PathBuf,
    },
    /// The key is another certificate's.
    #[error("the key {key} does not match the first certificate in {cert}")]
    KeyMismatch {
        /// Where the key is.
        key: String,
        /// The chain's file.
        cert: PathBuf,
    },
    /// The signer belongs to another trust domain.
    #[error("the signing certificate in {path} is for {found}, not for trust domain {expected}")]
    TrustDomain {
        /// The chain's file.
        path: PathBuf,
        /// The URI it carries.
        found: String,
        /// The trust domain it should sign for.
        expected: TrustDomain,
    },
    /// TLS peers would not accept what it signs.
    #[error("what the signer in {path} signs is not accepted by TLS peers: {why}")]
    Unaccepted {
        /// The chain's file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A key in a token can't be used.
    #[error("the key {key}: {why}")]
    Token {
        /// Where it is.
        key: String,
        /// What was tried, why it failed and what to do.
        why: String,
    },
}

impl SignerFault {
    pub(super) fn malformed(path: &Path, why: &dyn std::fmt::Display) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
}
