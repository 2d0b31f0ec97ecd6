//! Loads the signer and refuses, before anything is served, one that could not be trusted.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_core::certificate::Validity;
use mesh_core::identity::TrustDomain;
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, SERVER_NAME};

/// Largest PEM file that is read, in bytes.
const MAX_FILE_LEN: u64 = 1024 * 1024;

/// Where the signer is.
#[derive(Clone, Copy, Debug)]
pub struct SignerFiles<'a> {
    /// PEM: the intermediate first, then what leads to the root.
    pub ca_cert: &'a Path,
    /// PEM: the intermediate's private key.
    pub ca_key: &'a Path,
    /// PEM: the root or roots that nodes and workloads trust.
    pub root: &'a Path,
}

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
    /// The key can be read by others than its owner.
    #[error(
        "the signing key {path} has mode {mode:04o}: others than its owner can use it; run: chmod 600 {path}"
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
    #[error("{subject} in {path} expired on {when}: renew it and start again")]
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
        /// The key's file.
        key: PathBuf,
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
}

pub(super) fn load(
    files: &SignerFiles<'_>,
    trust_domain: &TrustDomain,
    now_s: i64,
) -> Result<Authority, SignerFault> {
    let roots = certificates(files.root)?;
    let mut chain = certificates(files.ca_cert)?;
    check_first(&chain[0], files, trust_domain)?;
    // An operator's chain file often ends with the root; peers have it already.
    chain.retain(|certificate| !roots.contains(certificate));
    let root = root_of(&chain, &roots, files)?;
    let mut validities = Vec::new();
    for (certificate, path) in chain
        .iter()
        .map(|c| (c, files.ca_cert))
        .chain([(&root, files.root)])
    {
        validities.push(check_authority(&parse(certificate, path)?, path, now_s)?);
    }
    let key = private_key(files.ca_key)?;
    let first = parse(&chain[0], files.ca_cert)?;
    if key.der_bytes() != first.public_key().subject_public_key.as_ref() {
        return Err(SignerFault::KeyMismatch {
            key: files.ca_key.to_owned(),
            cert: files.ca_cert.to_owned(),
        });
    }
    let issuer =
        Issuer::from_ca_cert_der(&chain[0], key).map_err(|e| malformed(files.ca_cert, &e))?;
    let authority = Authority {
        trust_domain: trust_domain.clone(),
        issuer,
        chain,
        roots,
        validities,
    };
    prove(&authority, files, now_s)?;
    Ok(authority)
}

fn malformed(path: &Path, why: &dyn std::fmt::Display) -> SignerFault {
    SignerFault::Malformed {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

fn read(
    path: &Path,
    check: impl FnOnce(u32) -> Result<(), SignerFault>,
) -> Result<Vec<u8>, SignerFault> {
    let unread = |error| SignerFault::Read {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(unread)?;
    let metadata = file.metadata().map_err(unread)?;
    if !metadata.is_file() {
        return Err(malformed(path, &"it is not a regular file"));
    }
    check(metadata.permissions().mode() & 0o7777)?;
    let mut content = Vec::new();
    file.take(MAX_FILE_LEN)
        .read_to_end(&mut content)
        .map_err(unread)?;
    Ok(content)
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SignerFault> {
    let content = read(path, |_| Ok(()))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<_, _>>()
        .map_err(|e| malformed(path, &e))?;
    if found.is_empty() {
        return Err(malformed(path, &"it holds no PEM certificate"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<KeyPair, SignerFault> {
    let content = read(path, |mode| {
        if mode & 0o077 == 0 {
            return Ok(());
        }
        Err(SignerFault::KeyPermissions {
            path: path.to_owned(),
            mode,
        })
    })?;
    let der = PrivateKeyDer::from_pem_slice(&content).map_err(|e| malformed(path, &e))?;
    KeyPair::try_from(&der).map_err(|e| malformed(path, &e))
}

fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
    path: &Path,
) -> Result<X509Certificate<'a>, SignerFault> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|e| malformed(path, &e))
}

fn signed(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    certificate.issuer() == issuer.subject()
        && certificate
            .verify_signature(Some(issuer.public_key()))
            .is_ok()
}

/// The signer itself: of this trust domain, and not self-signed.
fn check_first(
    certificate: &CertificateDer<'_>,
    files: &SignerFiles<'_>,
    trust_domain: &TrustDomain,
) -> Result<(), SignerFault> {
    let path = files.ca_cert.to_owned();
    let certificate = parse(certificate, &path)?;
    if signed(&certificate, &certificate) {
        return Err(SignerFault::SelfSigned {
            path,
            subject: certificate.subject().to_string(),
        });
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| malformed(&path, &e))?;
    let expected = format!("spiffe://{trust_domain}");
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::URI(uri) = name
            && uri.starts_with("spiffe://")
            && *uri != expected
        {
            return Err(SignerFault::TrustDomain {
                path,
                found: (*uri).to_owned(),
                expected: trust_domain.clone(),
            });
        }
    }
    Ok(())
}

/// The root that the chain leads to, each certificate being signed by the next.
fn root_of(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    files: &SignerFiles<'_>,
) -> Result<CertificateDer<'static>, SignerFault> {
    for (position, certificate) in chain.iter().enumerate() {
        let parsed = parse(certificate, files.ca_cert)?;
        if let Some(next) = chain.get(position + 1) {
            if signed(&parsed, &parse(next, files.ca_cert)?) {
                continue;
            }
        } else {
            for root in roots {
                if signed(&parsed, &parse(root, files.root)?) {
                    return Ok(root.clone());
                }
            }
        }
        return Err(SignerFault::NotChained {
            path: files.ca_cert.to_owned(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            root: files.root.to_owned(),
        });
    }
    Err(malformed(files.ca_cert, &"it holds no intermediate"))
}

/// A certificate of the chain, or the root: allowed to sign, and valid now.
fn check_authority(
    certificate: &X509Certificate<'_>,
    path: &Path,
    now_s: i64,
) -> Result<Validity, SignerFault> {
    let path = path.to_owned();
    let subject = certificate.subject().to_string();
    let constraints = certificate
        .basic_constraints()
        .map_err(|e| malformed(&path, &e))?;
    let usage = certificate.key_usage().map_err(|e| malformed(&path, &e))?;
    if !constraints.is_some_and(|c| c.value.ca) || usage.is_some_and(|u| !u.value.key_cert_sign()) {
        return Err(SignerFault::NotCa { path, subject });
    }
    let validity = certificate.validity();
    let (not_before_s, not_after_s) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    if not_after_s <= now_s {
        let when = validity.not_after.to_string();
        return Err(SignerFault::Expired {
            path,
            subject,
            when,
        });
    }
    if not_before_s > now_s {
        let when = validity.not_before.to_string();
        return Err(SignerFault::NotYetValid {
            path,
            subject,
            when,
        });
    }
    Ok(Validity {
        not_before_s,
        not_after_s,
    })
}

/// Issues a certificate and has it verified as a peer would: what the checks above don't
/// know of (path lengths, name constraints, algorithms) shows here, not at the first node.
fn prove(authority: &Authority, files: &SignerFiles<'_>, now_s: i64) -> Result<(), SignerFault> {
    let unaccepted = |why: &dyn std::fmt::Display| SignerFault::Unaccepted {
        path: files.ca_cert.to_owned(),
        why: why.to_string(),
    };
    let (issued, _) = authority.issue_server(now_s).map_err(|e| unaccepted(&e))?;
    let mut roots = RootCertStore::empty();
    for root in &authority.roots {
        roots
            .add(root.clone())
            .map_err(|e| malformed(files.root, &e))?;
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .map_err(|e| unaccepted(&e))?;
    let name = ServerName::try_from(SERVER_NAME).map_err(|e| unaccepted(&e))?;
    let seconds = u64::try_from(now_s).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let (leaf, intermediates) = issued
        .chain
        .split_first()
        .ok_or_else(|| unaccepted(&"nothing was issued"))?;
    verifier
        .verify_server_cert(leaf, intermediates, &name, &[], now)
        .map(|_| ())
        .map_err(|e| unaccepted(&e))
}
