//! How far a run of many steps is.

use std::time::{Duration, Instant};

/// Tells before each step what there is left.
pub(crate) struct Progress {
    begun: Instant,
    all: usize,
    done: usize,
    expected: Duration,
}

impl Progress {
    /// Of so many steps that are expected to take so long.
    pub(crate) fn new(all: usize, expected: Duration) -> Self {
        Self {
            begun: Instant::now(),
            all,
            done: 0,
            expected,
        }
    }

    /// What there is left before the next step.
    pub(crate) fn next(&mut self) -> String {
        let share = self.done as f64 / self.all as f64;
        let whole = match self.done {
            0 => self.expected,
            _ => self.begun.elapsed().div_f64(share),
        };
        self.done += 1;
        let left = whole.mul_f64(1.0 - share).as_secs_f64() / 60.0;
        format!(" ({:.0} %, {left:.1} min left)", share * 100.0)
    }
}
