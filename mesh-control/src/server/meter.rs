//! How often each may ask, so that none keeps control from the others.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use mesh_core::rate::TokenBucket;

/// Names beyond which those that have not asked for a while are forgotten.
const KEPT: usize = 4_096;

/// So many in a row, and so many a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In a second, in the long run.
    pub per_second: u32,
    /// In a row, after a rest.
    pub burst: u32,
}

/// How often callers may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Certificates for a node's workloads: all of its pods at once, and a few retries.
    pub node: Rate,
    /// Certificates for one identity, on all nodes. More than a node may ask, so that none
    /// uses up an identity; fewer than control can sign, so that no identity keeps others waiting.
    pub identity: Rate,
    /// Bearer tokens that one address shows: a node's own, with every call.
    pub bearer: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        let rate = |per_second, burst| Rate { per_second, burst };
        Self {
            node: rate(50, 2_048),
            identity: rate(200, 8_192),
            bearer: rate(100, 2_048),
        }
    }
}

/// Somebody asks too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {per_second} requests a second: ask for each pod once, and again later")]
pub(super) struct TooMany {
    per_second: u32,
    /// Whether the one before was let in.
    pub(super) first: bool,
}

/// A bucket for each name.
#[derive(Debug)]
pub(super) struct Meter {
    rate: Rate,
    asked: Mutex<HashMap<String, Asked>>,
}

#[derive(Debug)]
struct Asked {
    bucket: TokenBucket,
    refused: bool,
}

impl Meter {
    pub(super) fn new(rate: Rate) -> Self {
        let asked = Mutex::default();
        Self { rate, asked }
    }

    /// Whether this one may ask once more.
    pub(super) fn admit(&self, name: &str, now: Instant) -> Result<(), TooMany> {
        let Rate { per_second, burst } = self.rate;
        let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT && !all.contains_key(name) {
            all.retain(|_, asked| {
                asked.bucket.refill(now);
                asked.bucket.is_low()
            });
        }
        let asked = all.entry(name.to_owned()).or_insert_with(|| Asked {
            bucket: TokenBucket::new(per_second, burst, now),
            refused: false,
        });
        let first = !asked.refused;
        asked.refused = !asked.bucket.take(now);
        match asked.refused {
            true => Err(TooMany { per_second, first }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_that_asks_too_often_is_refused_and_no_other() {
        let Rate { per_second, burst } = Limits::default().node;
        let (meter, start) = (Meter::new(Limits::default().node), Instant::now());
        for _ in 0..burst {
            assert_eq!(meter.admit("a", start), Ok(()));
        }
        for first in [true, false] {
            assert_eq!(meter.admit("a", start), Err(TooMany { per_second, first }));
        }
        assert_eq!(meter.admit("b", start), Ok(()));
        let later = start + Duration::from_secs(1);
        let admitted = (0..burst).filter(|_| meter.admit("a", later).is_ok());
        assert_eq!(admitted.count(), per_second as usize);
    }
}
