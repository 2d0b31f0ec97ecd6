//! The audit log: who got a certificate, who was refused and why, each kind counted.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use metrics::counter;

use crate::refusal::{Refusal, Refused};

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
    /// A node's certificate was not renewed.
    RenewalRefused,
    /// A workload's certificate was signed.
    WorkloadSigned,
    /// A request for a workload's certificate was refused.
    WorkloadRefused,
    /// A caller that is no node was refused.
    CallerRefused,
    /// A node did not take a discovery response.
    DiscoveryRefused,
    /// A node reported too often; recorded once a second.
    ReportRefused,
    /// Other roots are to be trusted.
    TrustChanged,
    /// Another intermediate signs.
    SignerReplaced,
    /// Signers that were given are not usable; the last good ones stay.
    SignerRefused,
}

impl Event {
    const COUNT: usize = 13;

    /// The stable name in the log.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NodeJoined => "node_joined",
            Self::JoinRefused => "join_refused",
            Self::JoinWrongNode => "join_wrong_node",
            Self::NodeRenewed => "node_renewed",
            Self::RenewalRefused => "renewal_refused",
            Self::WorkloadSigned => "workload_signed",
            Self::WorkloadRefused => "workload_refused",
            Self::CallerRefused => "caller_refused",
            Self::DiscoveryRefused => "discovery_refused",
            Self::ReportRefused => "report_refused",
            Self::TrustChanged => "trust_changed",
            Self::SignerReplaced => "signer_replaced",
            Self::SignerRefused => "signer_refused",
        }
    }

    const fn granted(self) -> bool {
        matches!(
            self,
            Self::NodeJoined
                | Self::NodeRenewed
                | Self::WorkloadSigned
                | Self::TrustChanged
                | Self::SignerReplaced
        )
    }
}

/// Writes the audit log and counts.
#[derive(Debug, Default)]
pub struct Audit {
    counts: [AtomicU64; Event::COUNT],
    refusals: Mutex<HashMap<Refusal, u64>>,
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
        self.write(event, "", &node, &subject, &detail);
    }

    /// Records a refusal with its reason.
    pub fn refuse(
        &self,
        event: Event,
        refused: &Refused,
        node: impl fmt::Display,
        subject: impl fmt::Display,
    ) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(refused.refusal).or_default() += 1;
        drop(refusals);
        let reason = refused.refusal.code();
        self.write(event, reason, &node, &subject, &refused.message);
    }

    fn write(
        &self,
        event: Event,
        reason: &'static str,
        node: &dyn fmt::Display,
        subject: &dyn fmt::Display,
        detail: &dyn fmt::Display,
    ) {
        let total = self.counts[event as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let code = event.code();
        counter!("nodemesh_control_audit_total", "event" => code, "reason" => reason).increment(1);
        let [node, subject, detail] = [word(node), word(subject), word(detail)];
        if event.granted() {
            tracing::info!(target: "audit", event = code, %node, %subject, %detail, total);
        } else {
            tracing::warn!(
                target: "audit", event = code, reason, %node, %subject, %detail, total
            );
        }
    }

    /// How many of `event` there were.
    #[must_use]
    pub fn count(&self, event: Event) -> u64 {
        self.counts[event as usize].load(Ordering::Relaxed)
    }

    /// How many were refused for `refusal`.
    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> u64 {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.get(&refusal).copied().unwrap_or(0)
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
