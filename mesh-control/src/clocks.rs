//! Nodes' clocks beside control's own: certificates are made by one and judged by the other.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use mesh_core::certificate::CLOCK_SKEW_S;
use metrics::gauge;

/// From here on a clock is reported, in milliseconds: well above what a slow report makes, and
/// well below what certificates bear.
const NOTABLE_MS: i64 = 30_000;
/// Nodes that are kept.
const KEPT: usize = 16_384;

/// What nodes' reports say of their clocks.
#[derive(Debug, Default)]
pub struct Clocks {
    ahead_ms: Mutex<BTreeMap<String, i64>>,
}

impl Clocks {
    /// Takes notice of what a node's clock said, and says so if it is notably another time there
    /// than here: once, until it is right again. All in milliseconds since the epoch; 0 is not
    /// told.
    pub fn note(&self, node: &str, clock_ms: i64, now_ms: i64) {
        if clock_ms <= 0 {
            return;
        }
        let ahead_ms = clock_ms.saturating_sub(now_ms);
        let mut all = self.ahead_ms.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT && !all.contains_key(node) {
            return;
        }
        let before_ms = all.insert(node.to_owned(), ahead_ms).unwrap_or(0);
        let notable = |ahead_ms: i64| ahead_ms.saturating_abs() >= NOTABLE_MS;
        let count = all.values().filter(|ahead_ms| notable(**ahead_ms)).count();
        drop(all);
        let ahead_s = ahead_ms / 1000;
        match (notable(before_ms), notable(ahead_ms)) {
            (false, true) => tracing::warn!(
                node,
                ahead_s,
                borne_s = CLOCK_SKEW_S,
                "the node's clock and control's differ; beyond what is borne, certificates are \
                 refused there: set it right"
            ),
            (true, false) => tracing::info!(node, "the node's clock is right again"),
            _ => {}
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of nodes")]
        gauge!("nodemesh_control_nodes_with_wrong_clock").set(count as f64);
    }

    /// By how much a node's clock is ahead of control's, in seconds, if that is notable.
    #[must_use]
    pub fn ahead_s(&self, node: &str) -> Option<i64> {
        let all = self.ahead_ms.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead_ms = *all.get(node)?;
        (ahead_ms.saturating_abs() >= NOTABLE_MS).then_some(ahead_ms / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_minutes_off_is_told_until_it_is_right() {
        let clocks = Clocks::default();
        let now_ms = 1_000_000_000;
        for (clock_ms, told) in [
            (0, None),
            (now_ms + 2_000, None),
            (now_ms - 180_000, Some(-180)),
            (now_ms + 240_500, Some(240)),
            (i64::MAX, Some((i64::MAX - now_ms) / 1000)),
            (now_ms, None),
        ] {
            clocks.note("a", clock_ms, now_ms);
            assert_eq!(clocks.ahead_s("a"), told, "{clock_ms}");
        }
        assert_eq!(clocks.ahead_s("b"), None);
    }
}
