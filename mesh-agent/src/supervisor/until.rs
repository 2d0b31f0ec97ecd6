//! A point in time that a record keeps for the next supervisor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::join::now_s;
use crate::capture::kernel_clock_ns;

/// When something is to be over: by the clock that runs from the boot on and that nobody sets (a record
/// is as old as the boot, at most), and by the wall clock, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Until {
    /// Seconds since the epoch, as the wall clock was.
    until_s: i64,
    /// Seconds of the kernel's monotonic clock. An agent before this one kept none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until_clock_s: Option<u64>,
}

impl Until {
    /// So long from now on.
    pub(super) fn after(time: Duration) -> Self {
        let until_s = now_s().saturating_add_unsigned(time.as_secs());
        Self {
            until_s,
            until_clock_s: Some(clock_s() + time.as_secs()),
        }
    }

    /// How long it is until then; zero if it has come.
    pub(super) fn left(self) -> Duration {
        let left_s = match self.until_clock_s {
            Some(until_s) => until_s.saturating_sub(clock_s()),
            None => u64::try_from(self.until_s - now_s()).unwrap_or(0),
        };
        Duration::from_secs(left_s)
    }

    /// The same for people, in seconds since the epoch.
    pub(super) fn wall_s(self) -> i64 {
        self.until_s
    }
}

fn clock_s() -> u64 {
    kernel_clock_ns() / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_neither_ends_nor_lengthens_it() {
        for wall_s in [now_s() - 86_400, now_s() + 86_400] {
            let until = Until {
                until_s: wall_s,
                ..Until::after(Duration::from_secs(60))
            };
            let left_s = until.left().as_secs();
            assert!((55..=60).contains(&left_s), "{left_s}");
        }
    }

    #[test]
    fn what_an_agent_before_this_one_kept_is_read() {
        let text = format!("{{\"until_s\":{}}}", now_s() + 60);
        let until: Until = serde_json::from_str(&text).unwrap();
        assert!((55..=60).contains(&until.left().as_secs()));
        assert_eq!(serde_json::to_string(&until).unwrap(), text);
    }
}
