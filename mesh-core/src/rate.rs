//! How often something may happen: a token bucket over time that is given.

use std::time::{Duration, Instant};

/// So many in a row, and so many a second.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full one.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            per_second: f64::from(per_second),
            burst: f64::from(burst),
            tokens: f64::from(burst),
            at: now,
        }
    }

    /// Goes on at another rate. What is left stays, as far as the new burst holds it.
    pub fn set(&mut self, per_second: u32, burst: u32, now: Instant) {
        self.refill(now);
        self.per_second = f64::from(per_second);
        self.burst = f64::from(burst);
        self.tokens = self.tokens.min(self.burst);
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// Takes one whether it is there or not: what has happened is paid for afterwards.
    pub fn spend(&mut self, now: Instant) {
        self.refill(now);
        self.tokens -= 1.0;
    }

    /// Takes in what time has earned.
    pub fn refill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + earned).min(self.burst);
        self.at = self.at.max(now);
    }

    /// Until when it is in debt.
    #[must_use]
    pub fn in_debt_until(&self) -> Option<Instant> {
        (self.tokens < 0.0).then(|| self.at + self.earning(-self.tokens))
    }

    /// How long after the last use there is one to take.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.earning((1.0 - self.tokens).max(0.0))
    }

    /// Whether less than half of the burst is left.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.tokens < self.burst / 2.0
    }

    fn earning(&self, tokens: f64) -> Duration {
        Duration::from_secs_f64(tokens / self.per_second.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10, 3, start);
        let taken = (0..10).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 3);
        assert_eq!(bucket.wait(), SECOND / 10);
        assert!(!bucket.take(start + SECOND / 20));
        assert!(bucket.take(start + SECOND / 10));
        let later = start + 10 * SECOND;
        let taken = (0..10).filter(|_| bucket.take(later)).count();
        assert_eq!(taken, 3, "idle time earns no more than a burst");
    }

    #[test]
    fn a_debt_is_paid_by_time() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(500, 1_000, start);
        for _ in 0..1_000 {
            bucket.spend(start);
            assert_eq!(bucket.in_debt_until(), None);
        }
        bucket.spend(start);
        assert_eq!(bucket.in_debt_until(), Some(start + SECOND / 500));
        bucket.refill(start + SECOND);
        assert_eq!(bucket.in_debt_until(), None);
        assert!(bucket.is_low());
    }

    #[test]
    fn another_rate_holds_from_there_on() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1_000, 1_000, start);
        bucket.set(2, 2, start);
        let taken = (0..10).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 2);
        assert_eq!(bucket.wait(), SECOND / 2);
        bucket.set(1_000, 1_000, start);
        assert!(bucket.take(start + SECOND / 1_000));
    }
}
