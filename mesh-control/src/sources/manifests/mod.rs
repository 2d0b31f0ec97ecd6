//! A folder of Kubernetes-style manifests: read as a whole, checked as a whole, watched.
//!
//! A folder with a mistake is never taken in part: at the start it is refused, later the
//! last good state stays.

mod check;
mod compose;
mod document;
mod locate;
mod membership;
mod piecemeal;
mod schema;
mod watch;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_core::identity::TrustDomain;
use mesh_core::model::Mesh;
use mesh_core::revocation::Revocations;

pub(super) use piecemeal::{Composed, Piece, Pieces};
pub use watch::Watcher;

/// Label of a node with its region.
const REGION_LABEL: &str = "topology.kubernetes.io/region";
/// Label of a node with its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Something wrong in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The file.
    pub file: Arc<Path>,
    /// Line in the file, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// Path of the field, such as `spec.nodeName`; empty where there is none.
    pub field: String,
    /// What is wrong and what would be right.
    pub what: String,
    /// It is not wrong in itself, but names what isn't there. Where objects come one by one, that
    /// may be on its way.
    pub dangling: bool,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What a folder says.
#[derive(Debug)]
pub struct Loaded {
    /// The mesh it describes.
    pub mesh: Mesh,
    /// What it revokes.
    pub revocations: Revocations,
    /// What was skipped or looks wrong without being a mistake.
    pub warnings: Vec<Mistake>,
}

/// Why a folder is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestFault {
    /// The folder or a file can't be read.
    #[error("can't read {path}: {error}")]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Mistakes, all of them.
    #[error("{}", lines(.0))]
    Mistakes(Vec<Mistake>),
}

fn lines(mistakes: &[Mistake]) -> String {
    let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Reads the `*.yaml`, `*.yml` and `*.json` files of a folder, not its subfolders.
///
/// # Errors
/// What can't be read, or all mistakes found.
pub fn load(folder: &Path, trust_domain: &TrustDomain) -> Result<Loaded, ManifestFault> {
    let mut texts = Vec::new();
    for path in files(folder)? {
        let text = fs::read_to_string(&path).map_err(|error| ManifestFault::Read {
            path: path.clone(),
            error,
        })?;
        texts.push((path, text));
    }
    parse(&texts, trust_domain)
}

/// Reads files that are in memory already, each with its path.
///
/// # Errors
/// All mistakes found.
pub fn parse(
    files: &[(PathBuf, String)],
    trust_domain: &TrustDomain,
) -> Result<Loaded, ManifestFault> {
    let mut found = document::Found::default();
    for (path, text) in files {
        document::read(path, text, &mut found);
    }
    check::check(&mut found);
    if !found.mistakes.is_empty() {
        found.mistakes.sort();
        return Err(ManifestFault::Mistakes(found.mistakes));
    }
    let (mesh, mistakes) = compose::compose(&mut found, trust_domain);
    if !mistakes.is_empty() {
        return Err(ManifestFault::Mistakes(mistakes));
    }
    let revocations = compose::revocation::compose(&mut found, trust_domain);
    Ok(Loaded {
        mesh,
        revocations,
        warnings: found.warnings,
    })
}

/// The manifest files of a folder, sorted by name. Hidden files are none: editors and
/// Kubernetes' own volume mounts keep such beside the real ones.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ManifestFault> {
    let unread = |error| ManifestFault::Read {
        path: folder.to_owned(),
        error,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let manifest = path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if manifest && !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
