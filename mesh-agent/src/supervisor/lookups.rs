//! Destinations a worker has asked for: answered once each, pushed again when they change,
//! bounded in number and in rate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use mesh_api::convert::address_from_bytes;
use mesh_api::worker::{Destination, ResolveDestination};
use tokio::time::Instant;

use super::discovery::Discovery;

/// Destinations that lead somewhere, per worker.
const MAX_POSITIVE: usize = 16_384;
/// Destinations that lead nowhere, per worker: a port scan shall not crowd out the rest. A
/// worker asks again for those that aren't kept, when their time is up.
const MAX_NEGATIVE: usize = 1_024;
/// Messages of any kind that a worker may send in a row, and in a second: all workers share
/// the supervisor's one thread.
const BURST: f64 = 1_000.0;
const PER_SECOND: f64 = 500.0;

type Key = (IpAddr, u16);

/// One worker's look-ups.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    asked: HashMap<Key, Option<Destination>>,
    negative: usize,
}

fn is_negative(answer: Option<&Destination>) -> bool {
    answer.is_none_or(|destination| destination.ttl_ms > 0)
}

impl Lookups {
    /// Answers a look-up, or keeps it until discovery is known.
    pub(super) fn ask(
        &mut self,
        discovery: &Discovery,
        question: &ResolveDestination,
    ) -> Result<Option<Destination>, String> {
        let address =
            address_from_bytes(&question.address, "address").map_err(|e| e.to_string())?;
        let port = u16::try_from(question.port).map_err(|_| "port beyond 65535".to_owned())?;
        let answer = discovery.destination(address, port);
        self.keep((address, port), answer.clone());
        Ok(answer)
    }

    fn keep(&mut self, key: Key, answer: Option<Destination>) {
        self.forget(&key);
        let negative = is_negative(answer.as_ref());
        let positive = self.asked.len() - self.negative;
        let full = match negative {
            true => self.negative >= MAX_NEGATIVE,
            false => positive >= MAX_POSITIVE,
        };
        if !full {
            self.negative += usize::from(negative);
            self.asked.insert(key, answer);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(old) = self.asked.remove(key) {
            self.negative -= usize::from(is_negative(old.as_ref()));
        }
    }

    /// Discovery has changed: the answers that are others now.
    pub(super) fn refresh(&mut self, discovery: &Discovery) -> Vec<Destination> {
        let changed: Vec<(Key, Destination)> = self
            .asked
            .iter()
            .filter_map(|(&(address, port), old)| {
                let new = discovery.destination(address, port)?;
                (old.as_ref() != Some(&new)).then_some(((address, port), new))
            })
            .collect();
        for (key, new) in &changed {
            self.keep(*key, Some(new.clone()));
        }
        changed.into_iter().map(|(_, new)| new).collect()
    }
}

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
    use mesh_core::identity::Identity;
    use mesh_core::model::{Enrolment, Workload};

    fn question(last: u8, port: u32) -> ResolveDestination {
        ResolveDestination {
            address: vec![10, 0, 0, last],
            port,
        }
    }

    fn put(discovery: &Discovery, last: u8) {
        let identity = Identity::new("cluster.local".parse().unwrap(), "shop", "cart").unwrap();
        discovery.update(|mesh| {
            mesh.insert_workload(Workload {
                addresses: vec![[10, 0, 0, last].into()],
                enrolment: Enrolment::Enforce,
                ..Workload::new(format!("u{last}"), "cart", identity)
            });
        });
    }

    #[test]
    fn what_was_asked_is_pushed_when_it_changes_and_only_then() {
        let (discovery, mut lookups) = (Discovery::default(), Lookups::default());
        assert_eq!(lookups.ask(&discovery, &question(2, 80)), Ok(None));
        put(&discovery, 9);
        let pushed = lookups.refresh(&discovery);
        assert!(pushed.len() == 1 && !pushed[0].known, "{pushed:?}");
        put(&discovery, 2);
        let pushed = lookups.refresh(&discovery);
        assert!(pushed.len() == 1 && pushed[0].known, "{pushed:?}");
        put(&discovery, 3);
        assert!(lookups.refresh(&discovery).is_empty());
        assert_eq!(lookups.negative, 0);
        assert!(lookups.ask(&discovery, &question(2, 70_000)).is_err());
    }

    #[test]
    fn a_scan_is_bounded_and_crowds_nothing_out() {
        let (discovery, mut lookups) = (Discovery::default(), Lookups::default());
        put(&discovery, 2);
        for port in 0..3_000 {
            let answer = lookups
                .ask(&discovery, &question(7, port))
                .unwrap()
                .unwrap();
            assert!(!answer.known && answer.ttl_ms > 0);
        }
        assert_eq!(
            (lookups.negative, lookups.asked.len()),
            (MAX_NEGATIVE, MAX_NEGATIVE)
        );
        assert!(
            lookups
                .ask(&discovery, &question(2, 80))
                .unwrap()
                .unwrap()
                .known
        );
        assert_eq!(lookups.asked.len(), MAX_NEGATIVE + 1);
    }

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
