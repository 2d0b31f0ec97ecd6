//! How often each node may ask, so that none keeps control from the others.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use mesh_core::rate::TokenBucket;

/// Certificates for a node's workloads, in a row and in a second: all of its pods at once, and a
/// few retries.
const BURST: u32 = 2_048;
const PER_SECOND: u32 = 50;
/// Nodes beyond which those that have not asked for a while are forgotten.
const KEPT: usize = 4_096;

/// A node asks too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {PER_SECOND} signing requests a second: ask for each pod once, and again later")]
pub(super) struct TooMany {
    /// Whether the one before was let in.
    pub(super) first: bool,
}

/// A bucket for each node.
#[derive(Debug, Default)]
pub(super) struct Meter {
    nodes: Mutex<HashMap<String, Asked>>,
}

#[derive(Debug)]
struct Asked {
    bucket: TokenBucket,
    refused: bool,
}

impl Meter {
    /// Whether a node may ask once more.
    pub(super) fn admit(&self, node: &str, now: Instant) -> Result<(), TooMany> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= KEPT && !nodes.contains_key(node) {
            nodes.retain(|_, asked| {
                asked.bucket.refill(now);
                asked.bucket.is_low()
            });
        }
        let asked = nodes.entry(node.to_owned()).or_insert_with(|| Asked {
            bucket: TokenBucket::new(PER_SECOND, BURST, now),
            refused: false,
        });
        let first = !asked.refused;
        asked.refused = !asked.bucket.take(now);
        match asked.refused {
            true => Err(TooMany { first }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_node_that_asks_too_often_is_refused_and_no_other() {
        let (meter, start) = (Meter::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(meter.admit("a", start), Ok(()));
        }
        assert_eq!(meter.admit("a", start), Err(TooMany { first: true }));
        assert_eq!(meter.admit("a", start), Err(TooMany { first: false }));
        assert_eq!(meter.admit("b", start), Ok(()));
        let later = start + Duration::from_secs(1);
        let admitted = (0..BURST).filter(|_| meter.admit("a", later).is_ok());
        assert_eq!(admitted.count(), PER_SECOND as usize);
    }
}
