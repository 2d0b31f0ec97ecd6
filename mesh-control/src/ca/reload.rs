//! Follows the signers' files: a changed set is taken as a whole or not at all, and what was good
//! last stays.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};

use super::intermediate::Issuers;
use super::load::{Loaded, load};
use super::rollover::{Choice, choose};
use super::{Authority, Published, SignerFault, SignerSources};
use crate::audit::{Audit, Event};
use crate::marks::{Marks, marks};
use crate::refusal::{Refusal, Refused};

/// How often the files are looked at. A change is taken when it looks the same twice: a file may
/// still be being written, or the next of the set be about to change.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What tells two states of the files apart; None for one that is not there.
type Fingerprint = Vec<Option<Marks>>;

/// Keeps an [`Authority`] in step with the files of its signers.
pub struct Reloader {
    authority: Arc<Authority>,
    sources: SignerSources,
    published: Published,
    overlap_s: i64,
    audit: Arc<Audit>,
    seen: Fingerprint,
    taken: Fingerprint,
    /// What was loaded last, while some of it is held back.
    held: Option<(Issuers, i64)>,
}

impl Reloader {
    /// Begins with what the authority was opened with. `overlap_s` is how long a root is in the
    /// bundle before what chains to it signs.
    #[must_use]
    pub fn new(
        authority: Arc<Authority>,
        sources: SignerSources,
        published: Published,
        overlap_s: i64,
        audit: Arc<Audit>,
    ) -> Self {
        let reloader = Self {
            authority,
            published,
            overlap_s,
            audit,
            seen: Vec::new(),
            // Files that changed since they were loaded are loaded again, to no harm.
            taken: Vec::new(),
            held: None,
            sources,
        };
        reloader.show(true);
        reloader
    }

    /// Follows the files for ever.
    pub async fn run(self) {
        let reloader = Arc::new(std::sync::Mutex::new(self));
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let reloader = reloader.clone();
            // Files may hang, and tokens take their time.
            let looked = tokio::task::spawn_blocking(move || {
                let mut reloader = reloader.lock().unwrap_or_else(PoisonError::into_inner);
                reloader.look(crate::now_s());
            });
            match looked.await {
                Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
                Err(_) => return,
                Ok(()) => {}
            }
        }
    }

    /// Looks at the files once, and does what is due.
    pub fn look(&mut self, now_s: i64) {
        let now = fingerprint(&self.sources);
        if now == self.seen && now != self.taken {
            let loaded = load(&self.sources, self.authority.trust_domain(), now_s);
            // Another set may be there since; then this one may be a mixture.
            if fingerprint(&self.sources) == now {
                self.taken.clone_from(&now);
                match loaded {
                    Ok(loaded) => self.take(loaded, now_s),
                    Err(fault) => self.refuse(&fault),
                }
            }
        }
        self.seen = now;
        if let Some((_, due_s)) = &self.held
            && *due_s <= now_s
            && let Some((issuers, _)) = self.held.take()
        {
            self.install(issuers, now_s);
        }
    }

    fn take(&mut self, loaded: Loaded, now_s: i64) {
        let Loaded { bundle, issuers } = loaded;
        if let Err(error) = self.published.note(&bundle, now_s) {
            tracing::error!(%error, "since when roots are known could not be kept for a restart");
        }
        let roots = bundle.roots().len();
        let news = self.authority.bundle.send_if_modified(|current| {
            let news = *current != bundle;
            *current = bundle;
            news
        });
        if news {
            let detail = format_args!("{roots} roots");
            self.audit
                .record(Event::TrustChanged, "-", "trust bundle", detail);
        }
        self.install(issuers, now_s);
    }

    /// Lets sign what may sign by now.
    fn install(&mut self, loaded: Issuers, now_s: i64) {
        let current = self.authority.issuers();
        let bundle = self.authority.roots();
        let times = (now_s, self.overlap_s);
        let Choice { issuers, due_s } = choose(&loaded, &current, &bundle, &self.published, times);
        for (scope, intermediate) in issuers.all() {
            let before = current.all().find(|(name, _)| *name == scope);
            let same = before.is_some_and(|(_, before)| before.chain == intermediate.chain);
            if !same {
                let until = format_args!("until {} s", intermediate.not_after_s());
                let subject = format_args!("{scope}: {}", intermediate.subject);
                self.audit
                    .record(Event::SignerReplaced, "-", subject, until);
            }
        }
        self.authority.issuers.send_replace(Arc::new(issuers));
        self.held = due_s.map(|due_s| {
            let wait_s = due_s.saturating_sub(now_s);
            tracing::info!(
                wait_s,
                "a new intermediate waits until its root is known everywhere"
            );
            (loaded, due_s)
        });
        self.show(true);
    }

    fn refuse(&self, fault: &SignerFault) {
        let refused = Refused::new(Refusal::SignerFailed, fault.to_string());
        let subject = "signer; the last good one stays";
        self.audit
            .refuse(Event::SignerRefused, &refused, "-", subject);
        self.show(false);
    }

    fn show(&self, good: bool) {
        let result = if good { "taken" } else { "refused" };
        counter!("nodemesh_control_signer_loads_total", "result" => result).increment(1);
        // Whether what is in the files is not what signs.
        gauge!("nodemesh_control_signer_stale").set(if good { 0.0 } else { 1.0 });
        let held = if self.held.is_some() { 1.0 } else { 0.0 };
        gauge!("nodemesh_control_signer_held_back").set(held);
        #[expect(clippy::cast_precision_loss, reason = "seconds since the epoch")]
        for issuer in self.authority.status() {
            gauge!("nodemesh_control_signer_not_after_seconds", "scope" => issuer.scope)
                .set(issuer.not_after_s as f64);
        }
    }
}

fn fingerprint(sources: &SignerSources) -> Fingerprint {
    let intermediates = sources.intermediates();
    let files = intermediates.flat_map(|source| {
        let mut files = source.key.files();
        files.push(source.certificate.clone());
        files
    });
    let files: Vec<PathBuf> = std::iter::once(sources.root.clone()).chain(files).collect();
    files.iter().map(|path| marks(path)).collect()
}
