//! What an agent refuses, as its log and its metrics tell.

use std::fs;

use anyhow::{Context, Result};

use super::Agent;
use crate::node::Host;
use crate::pod::Pod;
use crate::wait;

/// Target of the lines about refusals, audited flows and cut connections.
const TARGET: &str = "nodemesh::refusal";

/// A place in a log: what is written later comes after it.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

/// A line about a flow that was refused, audited or cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// The value of one of the line's fields, such as `reason`; empty where it has none.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        let found = self.0.match_indices(name).find_map(|(at, _)| {
            let rest = self.0[at + name.len()..].strip_prefix('=')?;
            self.0[..at].ends_with([' ', '\t']).then_some(rest)
        });
        match found.map(|rest| (rest, rest.strip_prefix('"'))) {
            None => "",
            Some((_, Some(quoted))) => quoted.split('"').next().unwrap_or_default(),
            Some((rest, None)) => rest.split(' ').next().unwrap_or_default(),
        }
    }

    /// The whole line.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.0
    }
}

impl Agent {
    /// The end of the log as it is now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(fs::read(self.daemon.log()).map_or(0, |log| log.len()))
    }

    /// What the log tells of flows that were refused, audited or cut since then.
    ///
    /// # Errors
    /// If the log can't be read.
    pub fn refusals(&self, since: Mark) -> Result<Vec<Refusal>> {
        let log = fs::read(self.daemon.log()).context("reading the agent's log")?;
        let news = String::from_utf8_lossy(log.get(since.0..).unwrap_or_default()).into_owned();
        let lines = news.lines().filter(|line| line.contains(TARGET));
        Ok(lines.map(|line| Refusal(line.to_owned())).collect())
    }

    /// Waits until the log tells since then of a flow of this pod with these fields.
    ///
    /// # Errors
    /// When [`wait::PATIENCE`] is over, with what it tells of instead.
    pub fn wait_refusal(&self, since: Mark, pod: &Pod, fields: &[(&str, &str)]) -> Result<Refusal> {
        let key = pod.key();
        let wanted = |line: &Refusal| {
            line.field("pod") == key
                && fields
                    .iter()
                    .all(|(name, value)| line.field(name) == *value)
        };
        let found = wait::until("a line in the agent's log", wait::PATIENCE, || {
            Ok(self.refusals(since)?.into_iter().find(wanted))
        });
        found.with_context(|| {
            let lines = self.refusals(since).unwrap_or_default();
            let lines: Vec<&str> = lines.iter().map(Refusal::line).collect();
            format!("{key}, {fields:?}; the log has:\n{}", lines.join("\n"))
        })
    }

    /// How many flows of a pod this agent has refused for a reason, whoever decided it.
    ///
    /// # Errors
    /// If the metrics can't be had.
    pub fn refused(&self, host: &Host, pod: &Pod, reason: &str) -> Result<u64> {
        self.counted(host, pod, reason, "refusals")
    }

    /// How many flows of a pod this agent has let through, for audit, that it would have
    /// refused for a reason.
    ///
    /// # Errors
    /// If the metrics can't be had.
    pub fn audited(&self, host: &Host, pod: &Pod, reason: &str) -> Result<u64> {
        self.counted(host, pod, reason, "audited")
    }

    /// The sum of all series with this word in their name for this pod and reason.
    fn counted(&self, host: &Host, pod: &Pod, reason: &str, word: &str) -> Result<u64> {
        let text = self.metrics(host)?;
        let labels = [
            format!("pod=\"{}\"", pod.key()),
            format!("reason=\"{reason}\""),
        ];
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, own) = series.split_once('{')?;
            let counts = name.contains(word) && labels.iter().all(|label| own.contains(label));
            counts.then(|| value.parse::<u64>().ok())?
        });
        Ok(values.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_line_are_read_whole_and_not_out_of_each_other() {
        let line = "WARN nodemesh::refusal: refused: a sentence pod=shop/web peer_policy=no \
                    policy=shop/x detail=\"two words\" reason=policy_denied";
        let line = Refusal(line.to_owned());
        assert_eq!(line.field("policy"), "shop/x");
        assert_eq!(line.field("detail"), "two words");
        assert_eq!(line.field("reason"), "policy_denied");
        assert_eq!(line.field("outcome"), "");
    }
}
