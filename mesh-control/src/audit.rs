//! The audit log: who got a certificate, who was refused and why, each kind counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest field of a line, in characters. Certificates' subjects and refusals have some hundred.
const MAX_FIELD: usize = 512;

/// A field as it goes into a line. Nodes word a part of it, and a line of the audit log must be
/// neither forged nor filled by one.
fn word(field: &dyn fmt::Display) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    field
        .to_string()
        .chars()
        .take(MAX_FIELD)
        .map(plain)
        .collect()
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node exchanged its token for a certificate.
    NodeJoined,
    /// A join was refused.
    JoinRefused,
    /// A token was shown by another node than the one it was made for.
    JoinWrongNode,
    /// A node renewed its certificate.
    NodeRenewed,
    /// A workload's certificate was signed.
    WorkloadSigned,
    /// A request for a workload's certificate was refused.
    WorkloadRefused,
    /// A caller without a node's certificate was refused.
    CallerRefused,
    /// A node did not take a discovery response.
    DiscoveryRefused,
    /// A node reported too often; recorded once a second.
    ReportRefused,
}

impl Event {
    const COUNT: usize = 9;

    /// The stable name in the log.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NodeJoined => "node_joined",
            Self::JoinRefused => "join_refused",
            Self::JoinWrongNode => "join_wrong_node",
            Self::NodeRenewed => "node_renewed",
            Self::WorkloadSigned => "workload_signed",
            Self::WorkloadRefused => "workload_refused",
            Self::CallerRefused => "caller_refused",
            Self::DiscoveryRefused => "discovery_refused",
            Self::ReportRefused => "report_refused",
        }
    }

    const fn granted(self) -> bool {
        matches!(
            self,
            Self::NodeJoined | Self::NodeRenewed | Self::WorkloadSigned
        )
    }
}

/// Writes the audit log and counts.
#[derive(Debug, Default)]
pub struct Audit {
    counts: [AtomicU64; Event::COUNT],
}

impl Audit {
    /// Records one event: `node` is who called, `subject` what it was about.
    pub fn record(
        &self,
        event: Event,
        node: impl fmt::Display,
        subject: impl fmt::Display,
        detail: impl fmt::Display,
    ) {
        let total = self.counts[event as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let code = event.code();
        let [node, subject, detail] = [word(&node), word(&subject), word(&detail)];
        if event.granted() {
            tracing::info!(target: "audit", event = code, %node, %subject, %detail, total);
        } else {
            tracing::warn!(target: "audit", event = code, %node, %subject, %detail, total);
        }
    }

    /// How many of `event` there were.
    #[must_use]
    pub fn count(&self, event: Event) -> u64 {
        self.counts[event as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_stays_in_its_line() {
        assert_eq!(word(&"no\nWARN audit: \u{1b}[2J"), "no?WARN audit: ?[2J");
        assert_eq!(word(&"é".repeat(600)).chars().count(), MAX_FIELD);
    }
}
