//! Passive outlier detection: an endpoint that fails connection after connection is left alone
//! for a while.
//!
//! After `consecutive_failures` in a row it is ejected. The row goes on when it returns: if the
//! next connection fails too it is ejected again, for `base_ejection` longer than last time up to
//! `max_ejection`. One success ends the row, and an ejection with it.

use std::time::Instant;

use crate::traffic::OutlierDetection;

/// What is held against one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlier {
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
}

impl Outlier {
    /// Whether it is to be left alone at `now`.
    #[must_use]
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// A connection was answered.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A connection failed. Returns whether that ejects it, which it does only if `may_eject`:
    /// see [`has_room`]. While it is out, failures (of connections that began before, or of last
    /// resort) change nothing.
    pub fn failed(
        &mut self,
        rules: &OutlierDetection,
        now: Instant,
        may_eject: impl FnOnce() -> bool,
    ) -> bool {
        if self.is_ejected(now) {
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        let row = rules.consecutive_failures;
        if row == 0 || self.failures < row || !may_eject() {
            return false;
        }
        self.ejections = self.ejections.saturating_add(1);
        let time = rules.base_ejection.saturating_mul(self.ejections);
        self.until = now.checked_add(time.min(rules.max_ejection));
        self.until.is_some()
    }
}

/// Whether one more of `endpoints` may be ejected when `ejected` are: at most
/// `max_ejected_percent` of them, rounded down, and never all.
#[must_use]
pub fn has_room(rules: &OutlierDetection, endpoints: usize, ejected: usize) -> bool {
    let percent = usize::from(rules.max_ejected_percent.min(100));
    let most = endpoints.saturating_mul(percent) / 100;
    ejected < most.min(endpoints.saturating_sub(1))
}
