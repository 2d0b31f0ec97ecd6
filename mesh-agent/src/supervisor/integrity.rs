//! Looks time and again whether the kernel's programs are attached as they were left. The capture
//! repairs what isn't (`crate::capture`'s `check`); here it is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval_at};

use super::shared::Shared;
use super::tamper::{self, Outcome, Tamper};
use crate::capture::{Deviation, Finding, Remedy};

/// The looks, and what they found that still is so.
pub(super) struct Integrity {
    shared: Arc<Shared>,
    standing: BTreeSet<Finding>,
    unreadable: Option<String>,
}

impl Integrity {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            standing: BTreeSet::new(),
            unreadable: None,
        }
    }

    pub(super) async fn keep_looking(mut self) {
        let every = self.shared.config.check_every;
        let mut looks = interval_at(tokio::time::Instant::now() + every, every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.look();
        }
    }

    /// Looks once. What was repaired is told each time, what can't be only when it is news.
    pub(super) fn look(&mut self) {
        let checked = self.shared.capture().check();
        match checked {
            Ok(findings) => {
                self.unreadable = None;
                for finding in news(&mut self.standing, findings) {
                    self.tell(&finding);
                }
            }
            Err(e) => {
                let why = e.to_string();
                if self.unreadable.as_ref() != Some(&why) {
                    tracing::error!(why, "the attached programs could not be looked at");
                    self.unreadable = Some(why);
                }
            }
        }
    }

    fn tell(&self, finding: &Finding) {
        let pod = finding.slot.and_then(|slot| self.shared.pod_in(slot));
        let what = match finding.deviation {
            Deviation::Order => Tamper::Order,
            Deviation::Detached | Deviation::Replaced | Deviation::Unknown(_) => Tamper::Program,
        };
        let outcome = match finding.remedy {
            Remedy::Repaired => Outcome::Repaired,
            Remedy::CutOff(_) => Outcome::CutOff,
            Remedy::Failed(_) => Outcome::Standing,
        };
        tamper::noticed(pod.as_ref(), what, outcome, &finding.to_string());
    }
}

/// What of these findings is to be told; `standing` becomes those that are not repaired.
fn news(standing: &mut BTreeSet<Finding>, findings: Vec<Finding>) -> Vec<Finding> {
    let (repaired, rest): (Vec<_>, Vec<_>) = findings
        .into_iter()
        .partition(|finding| finding.remedy == Remedy::Repaired);
    let rest: BTreeSet<_> = rest.into_iter().collect();
    let new = rest.difference(standing).cloned();
    let news = repaired.into_iter().chain(new).collect();
    *standing = rest;
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(slot: u32, remedy: Remedy) -> Finding {
        Finding {
            slot: Some(slot),
            hook: "wall of veth0".to_owned(),
            deviation: Deviation::Detached,
            remedy,
        }
    }

    #[test]
    fn what_stays_is_told_once_and_what_is_repaired_each_time() {
        let repaired = finding(0, Remedy::Repaired);
        let stuck = finding(1, Remedy::CutOff("no memory".to_owned()));
        let mut standing = BTreeSet::new();
        let both = vec![repaired.clone(), stuck.clone()];
        assert_eq!(news(&mut standing, both.clone()), both);
        assert_eq!(news(&mut standing, both), [repaired]);
        assert_eq!(news(&mut standing, Vec::new()), []);
        assert_eq!(news(&mut standing, vec![stuck.clone()]), [stuck]);
    }

    #[test]
    fn a_finding_says_what_where_and_what_became_of_it() {
        let text = finding(1, Remedy::CutOff("no memory".to_owned())).to_string();
        for part in ["wall of veth0", "not attached", "set down", "no memory"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
