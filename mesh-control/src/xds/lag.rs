//! How long changes take from the source to the nodes that they concern.

use std::collections::VecDeque;
use std::time::Instant;

use metrics::histogram;

/// Most changes of one stream that are waited for; a client that acknowledges nothing is none
/// that is measured.
const MAX_WAITING: usize = 1024;

/// The changes that a stream was sent and has not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// The nonce that ends a change, and when the first of it came from the source.
    waiting: VecDeque<(String, Instant)>,
}

impl Lag {
    /// A change that came at `since` ends with the response of this nonce.
    pub(super) fn sent(&mut self, nonce: &str, since: Instant) {
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back((nonce.to_owned(), since));
    }

    /// The client has taken the response of this nonce, or refused a part of it: either way it
    /// has it.
    pub(super) fn acknowledged(&mut self, nonce: &str, now: Instant) {
        if let Some(since) = self.taken(nonce) {
            let lag = now.saturating_duration_since(since);
            histogram!("nodemesh_control_lag_seconds").record(lag.as_secs_f64());
        }
    }

    fn taken(&mut self, nonce: &str) -> Option<Instant> {
        let at = self.waiting.iter().position(|(sent, _)| sent == nonce)?;
        // Responses are acknowledged in order.
        let mut upto = self.waiting.drain(..=at);
        upto.next_back().map(|(_, since)| since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_waited_for_until_its_last_response_is_acknowledged() {
        let mut lag = Lag::default();
        let now = Instant::now();
        lag.sent("2", now);
        lag.sent("5", now);
        assert_eq!(lag.taken("1"), None);
        assert_eq!(lag.taken("5"), Some(now));
        assert_eq!((lag.taken("2"), lag.taken("5")), (None, None));
        for nonce in 0..2 * MAX_WAITING {
            lag.sent(&nonce.to_string(), now);
        }
        assert_eq!(lag.waiting.len(), MAX_WAITING);
    }
}
