//! The enterprise's certificate revocation lists (RFC 5280 §5): taken from files, each checked
//! against the CA that it names, followed. What is at a URL is fetched into a file.
//!
//! A list that can't be read or is not signed by a CA of this mesh is refused, and what was taken from
//! its file before stays. So is one that is older than the one taken before. One that is past its
//! `nextUpdate` is still good for what it lists, and told.

pub mod fetch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_core::revocation::significant;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::sync::watch;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

/// Serial numbers without leading zeros, by the DER name of who issued the certificates.
pub type Listed = BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>;

/// Largest file, in bytes.
const MAX_FILE_LEN: u64 = 16 * 1024 * 1024;
/// Most certificates that a list may name: every worker of the mesh holds them.
const MAX_LISTED: usize = 20_000;
/// How often files are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How far ahead a list's clock may be, in seconds.
const SKEW_S: i64 = 300;

/// Why a list is refused.
#[derive(Debug, thiserror::Error)]
pub enum CrlFault {
    /// The file can't be read.
    #[error("can't read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Not a list, or one that can't be understood.
    #[error("{path} is no usable CRL (PEM or DER): {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Not of a CA of this mesh.
    #[error(
        "the CRL in {path} is of {issuer}, which is neither a root nor an intermediate here: give the CRLs of those that issue for the mesh"
    )]
    Issuer {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        issuer: String,
    },
    /// Not signed by the CA that it names.
    #[error("the CRL in {path} is not signed by {issuer}, which it names as its issuer")]
    Signature {
        /// The file.
        path: PathBuf,
        /// Whose it should be.
        issuer: String,
    },
    /// Not to be in force yet.
    #[error("the CRL in {path} is of {from}, which is to come: check this machine's clock")]
    Future {
        /// The file.
        path: PathBuf,
        /// When it begins.
        from: String,
    },
    /// Older than the one in force.
    #[error("the CRL in {path} is older than the one of the same issuer that was taken before")]
    Older {
        /// The file.
        path: PathBuf,
    },
}

/// One list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crl {
    issuer: Vec<u8>,
    serials: BTreeSet<Vec<u8>>,
    this_update_s: i64,
    next_update_s: Option<i64>,
}

/// Reads the lists of a file and checks each against the CA that it names, one of `authorities`.
///
/// # Errors
/// The first thing that is wrong.
pub fn read(
    path: &Path,
    bytes: &[u8],
    authorities: &[CertificateDer<'_>],
    now_s: i64,
) -> Result<Vec<Crl>, CrlFault> {
    let malformed = |why: String| CrlFault::Malformed {
        path: path.to_owned(),
        why,
    };
    let lists: Vec<Vec<u8>> = if bytes.starts_with(b"\x30") {
        vec![bytes.to_vec()]
    } else {
        CertificateRevocationListDer::pem_slice_iter(bytes)
            .map(|list| list.map(|list| list.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|e| malformed(e.to_string()))?
    };
    if lists.is_empty() {
        return Err(malformed("it holds none".to_owned()));
    }
    let lists = lists.iter();
    lists
        .map(|der| check(path, der, authorities, now_s))
        .collect()
}

fn check(
    path: &Path,
    der: &[u8],
    authorities: &[CertificateDer<'_>],
    now_s: i64,
) -> Result<Crl, CrlFault> {
    let malformed = |why: String| CrlFault::Malformed {
        path: path.to_owned(),
        why,
    };
    let (rest, list) =
        CertificateRevocationList::from_der(der).map_err(|e| malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed("bytes after its end".to_owned()));
    }
    signed(path, &list, authorities)?;
    for extension in list.extensions().iter().filter(|e| e.critical) {
        match extension.parsed_extension() {
            // Of a part of the certificates only: what it lists is revoked all the same.
            ParsedExtension::IssuingDistributionPoint(point) if !point.indirect_crl => {}
            _ => {
                let oid = &extension.oid;
                return Err(malformed(format!(
                    "it has a critical extension ({oid}) that is not understood here, as delta and indirect CRLs have"
                )));
            }
        }
    }
    let this_update_s = list.last_update().timestamp();
    if this_update_s > now_s + SKEW_S {
        return Err(CrlFault::Future {
            path: path.to_owned(),
            from: list.last_update().to_string(),
        });
    }
    let mut serials = BTreeSet::new();
    for revoked in list.iter_revoked_certificates() {
        if revoked.extensions().iter().any(|e| e.critical) {
            return Err(malformed(
                "an entry has a critical extension, as indirect CRLs have".to_owned(),
            ));
        }
        serials.insert(significant(revoked.raw_serial()).to_vec());
    }
    if serials.len() > MAX_LISTED {
        let why = format!(
            "it lists {} certificates, more than {MAX_LISTED}",
            serials.len()
        );
        return Err(malformed(why));
    }
    Ok(Crl {
        issuer: list.issuer().as_raw().to_vec(),
        serials,
        this_update_s,
        next_update_s: list.next_update().map(|time| time.timestamp()),
    })
}

/// Whether one of the CAs has signed the list: one of the name that the list gives.
fn signed(
    path: &Path,
    list: &CertificateRevocationList<'_>,
    authorities: &[CertificateDer<'_>],
) -> Result<(), CrlFault> {
    let parsed = authorities.iter();
    let parsed = parsed.filter_map(|der| X509Certificate::from_der(der).ok());
    let named: Vec<_> = parsed
        .map(|(_, certificate)| certificate)
        .filter(|certificate| certificate.subject().as_raw() == list.issuer().as_raw())
        .collect();
    let (path, issuer) = (path.to_owned(), list.issuer().to_string());
    if named.is_empty() {
        return Err(CrlFault::Issuer { path, issuer });
    }
    let signs = |certificate: &X509Certificate<'_>| {
        let may = certificate.key_usage().ok().flatten();
        may.is_none_or(|usage| usage.value.crl_sign())
            && list.verify_signature(certificate.public_key()).is_ok()
    };
    match named.iter().any(signs) {
        true => Ok(()),
        false => Err(CrlFault::Signature { path, issuer }),
    }
}

/// Files with lists, and what they list.
pub struct CrlFiles {
    files: Vec<File>,
    authorities: Box<dyn Fn() -> Vec<CertificateDer<'static>> + Send + Sync>,
    listed: watch::Sender<Listed>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// What was read last, taken or not.
    seen: Option<Vec<u8>>,
    taken: Vec<Crl>,
    told_stale: bool,
}

impl CrlFiles {
    /// Reads the files for the first time. `authorities` gives all CAs that issue for the mesh.
    ///
    /// # Errors
    /// A file that can't be read, or a list that is refused.
    pub fn start(
        paths: &[PathBuf],
        authorities: impl Fn() -> Vec<CertificateDer<'static>> + Send + Sync + 'static,
        now_s: i64,
    ) -> Result<Self, CrlFault> {
        let mut started = Self {
            files: Vec::new(),
            authorities: Box::new(authorities),
            listed: watch::Sender::new(Listed::new()),
        };
        let authorities = (started.authorities)();
        for path in paths {
            let mut file = File {
                path: path.clone(),
                seen: None,
                taken: Vec::new(),
                told_stale: false,
            };
            file.look(&authorities, now_s)?;
            started.files.push(file);
        }
        started.publish(now_s);
        Ok(started)
    }

    /// What is listed, now and after each change.
    #[must_use]
    pub fn listed(&self) -> watch::Receiver<Listed> {
        self.listed.subscribe()
    }

    /// Follows the files as long as somebody asks for what they list.
    pub async fn run(mut self) {
        if self.files.is_empty() {
            return;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = self.listed.closed() => return,
            }
            let authorities = (self.authorities)();
            let now_s = crate::now_s();
            for file in &mut self.files {
                if let Err(error) = file.look(&authorities, now_s) {
                    tracing::error!(%error, "CRL not taken; the last good one stays");
                }
            }
            self.publish(now_s);
        }
    }

    fn publish(&mut self, now_s: i64) {
        let mut listed = Listed::new();
        for file in &mut self.files {
            file.tell_stale(now_s);
            for crl in &file.taken {
                let serials = listed.entry(crl.issuer.clone()).or_default();
                serials.extend(crl.serials.iter().cloned());
            }
        }
        self.listed.send_if_modified(|before| {
            let news = *before != listed;
            *before = listed;
            news
        });
    }
}

impl File {
    /// Reads the file, and takes its lists if it is another than before.
    fn look(&mut self, authorities: &[CertificateDer<'_>], now_s: i64) -> Result<(), CrlFault> {
        let bytes = content(&self.path)?;
        if self.seen.as_ref() == Some(&bytes) {
            return Ok(());
        }
        let lists = read(&self.path, &bytes, authorities, now_s);
        // What is refused is told once.
        self.seen = Some(bytes);
        let lists = lists?;
        let older = |new: &Crl| {
            let mut before = self.taken.iter();
            before.any(|old| old.issuer == new.issuer && old.this_update_s > new.this_update_s)
        };
        if lists.iter().any(older) {
            let path = self.path.clone();
            return Err(CrlFault::Older { path });
        }
        let certificates: usize = lists.iter().map(|crl| crl.serials.len()).sum();
        tracing::info!(path = %self.path.display(), lists = lists.len(), certificates, "CRL taken");
        self.taken = lists;
        self.told_stale = false;
        Ok(())
    }

    fn tell_stale(&mut self, now_s: i64) {
        let ends = self.taken.iter().filter_map(|crl| crl.next_update_s);
        let stale = ends.min().is_some_and(|end| end < now_s);
        if stale && !self.told_stale {
            tracing::error!(path = %self.path.display(), "the CRL is past its nextUpdate: what it lists stays revoked, what was revoked since is not known; put a fresh one there");
        }
        self.told_stale = stale;
    }
}

fn content(path: &Path) -> Result<Vec<u8>, CrlFault> {
    let mut content = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_LEN).read_to_end(&mut content))
        .map_err(|error| CrlFault::Read {
            path: path.to_owned(),
            error,
        })?;
    Ok(content)
}
