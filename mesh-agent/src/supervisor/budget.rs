//! How many messages a worker may send: all workers share the supervisor's one thread.

use std::time::Duration;

use tokio::time::Instant;

/// Messages of any kind in a row, and in a second.
const BURST: f64 = 1_000.0;
const PER_SECOND: f64 = 500.0;

/// A token bucket over time that is given.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            at: now,
        }
    }

    /// Takes one; may go into debt, which [`Budget::wait`] then tells of.
    pub(super) fn spend(&mut self, now: Instant) {
        self.refill(now);
        self.tokens -= 1.0;
    }

    /// Takes in what time has earned.
    pub(super) fn refill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        self.tokens = (self.tokens + earned).min(BURST);
        self.at = now;
    }

    /// Until when nothing more is to be read from the worker.
    pub(super) fn closed_until(&self) -> Option<Instant> {
        (self.tokens < 0.0).then(|| self.at + Duration::from_secs_f64(-self.tokens / PER_SECOND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_bounded() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..1_000 {
            budget.spend(start);
            assert_eq!(budget.closed_until(), None);
        }
        budget.spend(start);
        assert_eq!(
            budget.closed_until(),
            Some(start + Duration::from_millis(2))
        );
        budget.spend(start + Duration::from_secs(1));
        assert_eq!(budget.closed_until(), None);
    }
}
