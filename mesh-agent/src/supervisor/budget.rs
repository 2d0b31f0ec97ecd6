//! How much of the supervisor's one thread, and of control's work, a worker may have, and all
//! workers of the node together. A worker that keeps well within its own part is never made to
//! wait for what others have used up.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_core::rate::TokenBucket;
use tokio::time::Instant;

/// Messages of any kind of one worker, in a row and in a second.
const MESSAGES_BURST: u32 = 1_000;
const MESSAGES_PER_SECOND: u32 = 500;
/// Those of all: some tenth of a core.
const NODE_MESSAGES_BURST: u32 = 10_000;
const NODE_MESSAGES_PER_SECOND: u32 = 5_000;
/// Signing requests of all workers that go to control: every pod of a node at once after its
/// start, then as many as an hour's certificates take many times over.
const NODE_SIGNING_BURST: u32 = mesh_common::MAX_PODS;
const NODE_SIGNING_PER_SECOND: u32 = 20;
/// Workers that are started in place of such that have died.
const NODE_RESTARTS_BURST: u32 = 200;
const NODE_RESTARTS_PER_SECOND: u32 = 20;

/// What all workers of the node share.
#[derive(Debug)]
pub(super) struct NodeBudget {
    messages: Mutex<TokenBucket>,
    signing: Mutex<TokenBucket>,
    restarts: Mutex<TokenBucket>,
}

impl NodeBudget {
    pub(super) fn new(now: Instant) -> Self {
        let bucket =
            |per_second, burst| Mutex::new(TokenBucket::new(per_second, burst, now.into_std()));
        Self {
            messages: bucket(NODE_MESSAGES_PER_SECOND, NODE_MESSAGES_BURST),
            signing: bucket(NODE_SIGNING_PER_SECOND, NODE_SIGNING_BURST),
            restarts: bucket(NODE_RESTARTS_PER_SECOND, NODE_RESTARTS_BURST),
        }
    }

    /// When one more signing request may go to control. It has its turn from here on.
    pub(super) fn signing(&self, now: Instant) -> Instant {
        turn(&self.signing, now)
    }

    /// When one more worker may be started. It has its turn from here on.
    pub(super) fn restart(&self, now: Instant) -> Instant {
        turn(&self.restarts, now)
    }
}

fn lock(bucket: &Mutex<TokenBucket>) -> MutexGuard<'_, TokenBucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

fn turn(bucket: &Mutex<TokenBucket>, now: Instant) -> Instant {
    let mut bucket = lock(bucket);
    bucket.spend(now.into_std());
    bucket.in_debt_until().map_or(now, Instant::from_std)
}

/// Messages of one worker.
#[derive(Clone, Debug)]
pub(super) struct Budget(TokenBucket);

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        let now = now.into_std();
        Self(TokenBucket::new(MESSAGES_PER_SECOND, MESSAGES_BURST, now))
    }

    /// Pays for one; may go into debt, which [`Budget::closed_until`] then tells of.
    pub(super) fn spend(&mut self, node: &NodeBudget, now: Instant) {
        self.0.spend(now.into_std());
        lock(&node.messages).spend(now.into_std());
    }

    /// Until when nothing more is to be read from the worker.
    pub(super) fn closed_until(&mut self, node: &NodeBudget, now: Instant) -> Option<Instant> {
        self.0.refill(now.into_std());
        let own = self.0.in_debt_until();
        let nodes = self.0.is_low().then(|| {
            let mut messages = lock(&node.messages);
            messages.refill(now.into_std());
            messages.in_debt_until()
        });
        own.max(nodes.flatten()).map(Instant::from_std)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_workers_rate_is_bounded() {
        let start = Instant::now();
        let (mut budget, node) = (Budget::new(start), NodeBudget::new(start));
        for _ in 0..MESSAGES_BURST {
            budget.spend(&node, start);
            assert_eq!(budget.closed_until(&node, start), None);
        }
        budget.spend(&node, start);
        let until = start + Duration::from_millis(2);
        assert_eq!(budget.closed_until(&node, start), Some(until));
        let later = start + Duration::from_secs(1);
        assert_eq!(budget.closed_until(&node, later), None);
    }

    #[test]
    fn workers_that_use_up_the_nodes_part_wait_and_a_modest_one_does_not() {
        let start = Instant::now();
        let node = NodeBudget::new(start);
        let mut greedy: Vec<Budget> = (0..11).map(|_| Budget::new(start)).collect();
        for budget in &mut greedy {
            (0..MESSAGES_BURST).for_each(|_| budget.spend(&node, start));
        }
        // The node is 1,000 in debt: a fifth of a second.
        let until = Some(start + Duration::from_millis(200));
        for budget in &mut greedy {
            assert_eq!(budget.closed_until(&node, start), until);
        }
        let mut modest = Budget::new(start);
        for _ in 0..MESSAGES_BURST / 2 {
            modest.spend(&node, start);
        }
        assert_eq!(modest.closed_until(&node, start), None);
    }

    #[test]
    fn turns_are_given_one_after_the_other() {
        let start = Instant::now();
        let node = NodeBudget::new(start);
        for _ in 0..NODE_SIGNING_BURST {
            assert_eq!(node.signing(start), start);
        }
        let step = Duration::from_secs(1) / NODE_SIGNING_PER_SECOND;
        assert_eq!(node.signing(start), start + step);
        assert_eq!(node.signing(start), start + 2 * step);
        // What is used up of one kind is not missing of another.
        assert_eq!(node.restart(start), start);
        assert_eq!(node.signing(start + 10 * step), start + 10 * step);
    }
}
