//! What a case is, and the order in which they are run.

use anyhow::Result;

use super::cases;
use super::session::Session;

/// What a case came to, where it did not fail.
pub(super) enum Verdict {
    Passed,
    /// This cluster has not what it takes: what that is.
    NotHere(String),
}

/// One thing that has to hold.
pub(super) struct Case {
    pub(super) group: &'static str,
    /// Its name, which says what holds.
    pub(super) name: &'static str,
    /// Nothing after it can hold where it fails.
    pub(super) needed: bool,
    pub(super) run: fn(&Session<'_>) -> Result<Verdict>,
}

impl Case {
    pub(super) const fn new(
        group: &'static str,
        name: &'static str,
        run: fn(&Session<'_>) -> Result<Verdict>,
    ) -> Self {
        Self {
            group,
            name,
            needed: false,
            run,
        }
    }

    /// One without which there is no point in going on.
    pub(super) const fn needed(self) -> Self {
        Self {
            needed: true,
            ..self
        }
    }
}

/// All cases, each group after those that it stands on.
pub(super) fn all() -> impl Iterator<Item = &'static Case> {
    let groups: [&'static [Case]; 7] = [
        cases::install::CASES,
        cases::enrolment::CASES,
        cases::policy::CASES,
        cases::probes::CASES,
        cases::rollout::CASES,
        cases::nodes::CASES,
        cases::uninstall::CASES,
    ];
    groups.into_iter().flatten()
}
