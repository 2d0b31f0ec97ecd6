//! How long to wait before trying again: worker restarts and calls to control.

use std::time::Duration;

/// Restarts that are made at once while a pod has credit.
const IMMEDIATE: u32 = 5;
/// A worker that lived this long gives one immediate restart back.
const CREDIT_AFTER: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// When to start a pod's next worker. The first restarts are immediate; a worker that
/// keeps dying young is started ever more slowly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RestartPolicy {
    credit: u32,
    delay: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            credit: IMMEDIATE,
            delay: FIRST_DELAY,
        }
    }
}

impl RestartPolicy {
    /// A worker has ended after `lived`: how long to wait before the next.
    pub(super) fn after(&mut self, lived: Duration) -> Duration {
        let earned = lived.as_secs() / CREDIT_AFTER.as_secs();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(IMMEDIATE);
            self.credit = self.credit.saturating_add(earned).min(IMMEDIATE);
            self.delay = FIRST_DELAY;
        }
        if self.credit > 0 {
            self.credit -= 1;
            return Duration::ZERO;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(LONGEST_DELAY);
        delay
    }
}

/// Exponential back-off with full jitter, for calls to control: a mesh's nodes don't come
/// back all at one moment.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    ceiling: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            ceiling: first,
            first,
            longest,
        }
    }

    /// After a success.
    pub(super) fn reset(&mut self) {
        self.ceiling = self.first;
    }

    /// The next wait; `random` is uniform over all of `u32`.
    pub(super) fn next(&mut self, random: u32) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(self.longest);
        // At least half, so that a low draw doesn't hammer.
        ceiling / 2 + (ceiling / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// A random number for jitter.
pub(super) fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness there is no TLS either; jitter can do without.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return 0;
    }
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_immediate_until_a_worker_keeps_dying_young() {
        let mut policy = RestartPolicy::default();
        let young = Duration::from_millis(300);
        for _ in 0..IMMEDIATE {
            assert_eq!(policy.after(young), Duration::ZERO);
        }
        let delays: Vec<_> = (0..9).map(|_| policy.after(young).as_millis()).collect();
        assert_eq!(
            delays,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(policy.after(CREDIT_AFTER), Duration::ZERO);
        assert_eq!(policy.after(young), FIRST_DELAY);
        assert_eq!(policy.after(Duration::from_secs(3600)), Duration::ZERO);
        assert_eq!(policy.credit, IMMEDIATE - 1);
    }

    #[test]
    fn back_off_grows_to_its_limit_and_starts_over() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, longest);
        let waits: Vec<_> = (0..4).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1000]);
        assert_eq!(backoff.next(0), longest / 2);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), first);
    }
}
