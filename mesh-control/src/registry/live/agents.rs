//! What nodes' agents say of themselves.

use std::time::Instant;

use super::Registry;

/// The agent of one node, by its own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// It has not reported.
    Unheard,
    /// It has missed its reports.
    Silent,
    /// It can't enrol pods: why, for the operator.
    NotReady(String),
    /// It can enrol pods.
    Ready,
}

impl Registry {
    /// What the agent of a node has said of itself since then. What it said before counts for nothing:
    /// another machine may have had that name.
    #[must_use]
    pub fn agent(&self, node: &str, since: Instant, now: Instant) -> Agent {
        let state = self.lock();
        let record = state.nodes.get(node);
        match record.filter(|record| record.heard_since(since)) {
            None => Agent::Unheard,
            Some(record) if record.silent(now) => Agent::Silent,
            Some(record) => match record.lacks() {
                Some(why) => Agent::NotReady(why.to_owned()),
                None => Agent::Ready,
            },
        }
    }
}
