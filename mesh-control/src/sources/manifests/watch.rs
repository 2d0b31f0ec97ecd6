//! Follows the folder: what changed is read once it has come to rest, and taken as a whole
//! or not at all.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mesh_core::identity::TrustDomain;
use mesh_core::revocation::Revocations;
use tokio::sync::watch;

use super::{Loaded, ManifestFault, files, load};
use crate::marks::{Marks, marks};
use crate::registry::{Directory, Registry};

/// How often the folder is looked at. A change is taken when it looks the same twice, so
/// that a file that is still being written is left alone.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What tells two states of the folder apart without reading the files.
type Fingerprint = Vec<(PathBuf, Marks)>;

/// Keeps a [`Registry`] in step with a folder.
pub struct Watcher {
    folder: PathBuf,
    trust_domain: TrustDomain,
    taken: Option<Fingerprint>,
    registry: Weak<Registry>,
    revocations: watch::Sender<Revocations>,
}

impl Watcher {
    /// Loads the folder for the first time.
    ///
    /// # Errors
    /// A folder with mistakes: nothing is served then.
    pub fn start(
        folder: &Path,
        trust_domain: &TrustDomain,
    ) -> Result<(Self, Arc<Registry>), ManifestFault> {
        let taken = fingerprint(folder);
        let loaded = load(folder, trust_domain)?;
        report(&loaded);
        let revocations = watch::Sender::new(loaded.revocations);
        let registry = Arc::new(Registry::new(Directory::new(loaded.mesh)));
        let watcher = Self {
            folder: folder.to_owned(),
            trust_domain: trust_domain.clone(),
            taken,
            registry: Arc::downgrade(&registry),
            revocations,
        };
        Ok((watcher, registry))
    }

    /// What the folder revokes, now and after each change.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<Revocations> {
        self.revocations.subscribe()
    }

    /// Follows the folder as long as there is a registry.
    pub async fn run(mut self) {
        let mut seen = self.taken.clone();
        while self.registry.strong_count() > 0 {
            tokio::time::sleep(POLL_INTERVAL).await;
            let folder = self.folder.clone();
            let Some(now) = apart(move || fingerprint(&folder)).await else {
                return;
            };
            if now == seen && now != self.taken {
                let (folder, domain) = (self.folder.clone(), self.trust_domain.clone());
                let Some(reloaded) = apart(move || reload(&folder, &domain)).await else {
                    return;
                };
                if let (Some((directory, revocations)), Some(registry)) =
                    (reloaded, self.registry.upgrade())
                {
                    self.revocations.send_replace(revocations);
                    registry.set_sources(&directory, Instant::now());
                }
                self.taken = now.clone();
            }
            seen = now;
        }
    }
}

/// Runs file work away from the thread that serves; None when the runtime is ending.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(ended) if ended.is_cancelled() => None,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn reload(folder: &Path, trust_domain: &TrustDomain) -> Option<(Directory, Revocations)> {
    match load(folder, trust_domain) {
        Ok(loaded) => {
            report(&loaded);
            return Some((Directory::new(loaded.mesh), loaded.revocations));
        }
        Err(ManifestFault::Mistakes(mistakes)) => {
            for mistake in &mistakes {
                tracing::error!(%mistake, "manifests not taken");
            }
            let count = mistakes.len();
            tracing::error!(count, "manifests have mistakes; the last good state stays");
        }
        Err(error) => {
            tracing::error!(%error, "manifests not taken; the last good state stays");
        }
    }
    None
}

fn report(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!(%warning, "manifests");
    }
    let workloads = loaded.mesh.workloads().count();
    let enrolled = loaded.mesh.workloads().filter(|w| w.enrolled()).count();
    let services = loaded.mesh.services().count();
    let policies = loaded.mesh.authorizations().count() + loaded.mesh.authentications().count();
    tracing::info!(workloads, enrolled, services, policies, "manifests taken");
}

/// None while the folder can't be listed: a state of its own, that is tried again.
fn fingerprint(folder: &Path) -> Option<Fingerprint> {
    let paths = files(folder).ok()?;
    paths
        .into_iter()
        .map(|path| {
            let marks = marks(&path)?;
            Some((path, marks))
        })
        .collect()
}
