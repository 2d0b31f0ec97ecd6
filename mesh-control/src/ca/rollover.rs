//! A root's rollover: since when each root has been in the bundle, and whether long enough for an
//! intermediate under it to sign.
//!
//! What is signed under a root that a peer has not heard of is refused there. So a root is first
//! distributed, and what chains to it signs only after a time in which every node has taken it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use super::TrustBundle;
use super::intermediate::{Intermediate, Issuers};

/// Name of the record in the state folder.
const FILE_NAME: &str = "trust-bundle.json";

/// Why the record of roots can't be used.
#[derive(Debug, thiserror::Error)]
#[error("record of roots {path}: {error}; if it is damaged, remove it: roots then count as known")]
pub struct RecordFault {
    path: PathBuf,
    error: io::Error,
}

/// Since when each root has been in the bundle: SHA-256 in hex, seconds since the epoch. It
/// outlives this process, or a restart would make a root look known that nodes have not seen.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
    since: BTreeMap<String, i64>,
}

impl Published {
    /// Takes up the record in a state folder. Without one, the roots of `bundle` count as known:
    /// nobody trusts any others yet.
    ///
    /// # Errors
    /// A record that can't be read or written.
    pub fn open(state_dir: &Path, bundle: &TrustBundle, now_s: i64) -> Result<Self, RecordFault> {
        let path = state_dir.join(FILE_NAME);
        let fault = |error| RecordFault {
            path: path.clone(),
            error,
        };
        let (since, new_since_s) = match fs::read(&path) {
            Ok(content) => {
                let since = serde_json::from_slice(&content).map_err(|e| fault(e.into()))?;
                (since, now_s)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => (BTreeMap::new(), 0),
            Err(e) => return Err(fault(e)),
        };
        let mut published = Self {
            path: path.clone(),
            since,
        };
        published.note(bundle, new_since_s).map_err(fault)?;
        Ok(published)
    }

    /// Takes notice of the roots that are in the bundle from now on.
    pub(super) fn note(&mut self, bundle: &TrustBundle, now_s: i64) -> io::Result<()> {
        let names = bundle.roots().iter().map(|root| name(root));
        let since: BTreeMap<_, _> = names
            .map(|name| {
                let since_s = self.since.get(&name).copied().unwrap_or(now_s);
                (name, since_s)
            })
            .collect();
        if since == self.since && self.path.exists() {
            return Ok(());
        }
        self.since = since;
        let draft = self.path.with_extension("draft");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&serde_json::to_vec(&self.since)?)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    /// From when on what chains to this root may sign, in seconds since the epoch.
    fn due_s(&self, root: &[u8], overlap_s: i64) -> i64 {
        let since_s = self.since.get(&name(root)).copied();
        since_s.map_or(i64::MAX, |since_s| since_s.saturating_add(overlap_s))
    }
}

fn name(root: &[u8]) -> String {
    let hash = digest(&SHA256, root);
    hash.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// What signs now, and when that is to be looked at again.
pub(super) struct Choice {
    pub(super) issuers: Issuers,
    /// When the next intermediate that is held back may sign, in seconds since the epoch.
    pub(super) due_s: Option<i64>,
}

/// Chooses what signs: of each scope the intermediate that was loaded, or the one that has signed
/// so far while the new one's root is not yet known everywhere. One that can't sign any more
/// (its root is gone, or its time is up) is not kept.
pub(super) fn choose(
    loaded: &Issuers,
    current: &Issuers,
    bundle: &TrustBundle,
    published: &Published,
    (now_s, overlap_s): (i64, i64),
) -> Choice {
    let mut due_s: Option<i64> = None;
    let mut pick = |new: &Arc<Intermediate>, old: &Arc<Intermediate>| {
        let ready_s = published.due_s(&new.root, overlap_s);
        let good = bundle.roots().contains(&old.root) && old.not_after_s() > now_s;
        if ready_s <= now_s || old.root == new.root || !good {
            return new.clone();
        }
        due_s = Some(due_s.map_or(ready_s, |due_s| due_s.min(ready_s)));
        old.clone()
    };
    let default = pick(&loaded.default, &current.default);
    let scoped = loaded.scoped.iter();
    let scoped = scoped
        .map(|(scope, new)| (scope.clone(), pick(new, current.for_scope(scope))))
        .collect();
    Choice {
        issuers: Issuers::new(default, scoped),
        due_s,
    }
}
