//! Refusals as log lines: one line each, naming the pod, both ends, the reason, the policy that
//! decided and what would change it. `outcome` says whether the flow was refused, was open and
//! is cut, or was let through in audit.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use mesh_api::worker::{Refusal, TunnelOpened, refusal};
use mesh_common::{EVENT_AUDITED, RefusalEvent};
use mesh_core::explain::{self, Connection};
use mesh_core::policy::{Direction, PolicyKey};
use mesh_core::rate::TokenBucket;
use mesh_core::reason::Reason;
use tokio::time::Instant;

use super::pods::PodKey;
use super::shared::Shared;
use crate::capture::{self, Events};

/// Lines per pod, in a row and in a second: a seized worker shall not fill the log.
const LINES_BURST: u32 = 50;
const LINES_PER_SECOND: u32 = 20;
/// Number of the protocol (RFC 3376).
const IGMP: u8 = 2;
/// Longest text of a worker that goes into a line.
const TEXT_LIMIT: usize = 256;

/// A pod's budget of log lines.
#[derive(Clone, Debug)]
pub(super) struct LineBudget(TokenBucket);

impl LineBudget {
    pub(super) fn new(now: Instant) -> Self {
        let now = now.into_std();
        Self(TokenBucket::new(LINES_PER_SECOND, LINES_BURST, now))
    }

    /// Whether one more line may be written.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        self.0.take(now.into_std())
    }
}

fn find_reason(code: &str) -> Option<Reason> {
    Reason::ALL
        .iter()
        .copied()
        .find(|reason| reason.code() == code)
}

/// A worker may be seized: what it says must neither fill nor forge a line.
pub(super) fn word(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    text.chars().take(TEXT_LIMIT).map(plain).collect()
}

/// The same for text with spaces, which is printed quoted and escaped.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(TEXT_LIMIT).collect()
}

/// An outcome as a field, and how the line begins.
fn outcome_words(outcome: refusal::Outcome) -> (&'static str, &'static str) {
    match outcome {
        refusal::Outcome::Refused => ("refused", "refused"),
        refusal::Outcome::Audited => ("audited", "would be refused"),
        refusal::Outcome::Cut => ("cut", "cut"),
    }
}

/// A refusal that a worker decided.
pub(super) fn log_worker_refusal(pod: &PodKey, refusal: &Refusal) {
    let reason = find_reason(&refusal.reason);
    let (outcome, verb) = outcome_words(refusal.outcome());
    let named = !refusal.policy.is_empty();
    let policy = named.then(|| tracing::field::display(word(&refusal.policy)));
    tracing::warn!(
        target: "nodemesh::refusal",
        pod = %pod,
        by = %"worker",
        direction = %word(&refusal.direction),
        source = %word(&refusal.source),
        destination = %word(&refusal.destination),
        outcome = %outcome,
        reason = %reason.map_or("unknown", Reason::code),
        policy,
        peer_identity = %word(&refusal.peer_identity),
        detail = clip(&refusal.detail).as_str(),
        remedy = reason.map(Reason::remedy),
        suppressed = refusal.suppressed,
        "{verb}: {}",
        reason.map_or("the worker gives a reason that this supervisor doesn't know", Reason::sentence),
    );
}

/// What becomes of a connection that is older than its pod's enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was reset.
    Cut,
    /// It would be, and goes on because the pod is in audit.
    Audited,
}

/// A connection that is older than its pod's enrolment, and that the supervisor decided on.
pub(super) fn log_grandfather(
    pod: &PodKey,
    connection: &Connection,
    how: Ended,
    reason: Reason,
    policy: Option<&PolicyKey>,
) {
    let (outcome, verb) = outcome_words(match how {
        Ended::Cut => refusal::Outcome::Cut,
        Ended::Audited => refusal::Outcome::Audited,
    });
    let (direction, source, destination) = match connection.direction {
        Direction::Inbound => ("inbound", connection.remote, connection.local),
        Direction::Outbound => ("outbound", connection.local, connection.remote),
    };
    tracing::warn!(
        target: "nodemesh::refusal",
        pod = %pod,
        by = %"supervisor",
        direction = %direction,
        source = %source,
        destination = %destination,
        outcome = %outcome,
        reason = %reason.code(),
        policy = policy.map(tracing::field::display),
        remedy = reason.remedy(),
        "{verb}, a connection older than the enrolment: {}",
        reason.sentence(),
    );
}

/// A tunnel that stands: whom the other side proved to be.
pub(super) fn log_tunnel(pod: &PodKey, tunnel: &TunnelOpened) {
    tracing::info!(
        target: "nodemesh::tunnel",
        pod = %pod,
        direction = %word(&tunnel.direction),
        peer_identity = %word(&tunnel.peer_identity),
        peer_address = %word(&tunnel.peer_address),
        tls = clip(&tunnel.tls).as_str(),
        "tunnel opened",
    );
}

pub(super) fn address(bytes: [u8; 16], port: u16) -> String {
    if bytes == [0; 16] && port == 0 {
        return "unknown".to_owned();
    }
    SocketAddr::new(ip(bytes), port).to_string()
}

fn ip(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// The policy that the kernel denied a connect for, which it can't tell.
fn denied_by(shared: &Shared, event: &RefusalEvent, pod: &PodKey) -> Option<PolicyKey> {
    let policy = shared.kernel.source(event.slot)?;
    let view = shared.discovery.view();
    let uid = pod.workload_uid(&shared.config.cluster_id);
    let to = (ip(event.destination), event.destination_port);
    explain::denied_by(&view.mesh, &policy, view.mesh.workload(&uid)?, to)
}

/// Whether it is about who listens to which multicast group (IGMP). Every bridge and every kernel that
/// joins a group says that; no pod needs it where multicast does not pass.
fn is_membership(event: &RefusalEvent, reason: Option<Reason>) -> bool {
    reason == Some(Reason::WallProtocol) && event.protocol == IGMP
}

fn log_kernel_refusal(shared: &Shared, event: &RefusalEvent) {
    let key = shared.pod_in(event.slot);
    let reason = capture::from_number(event.reason).map(capture::reason);
    if is_membership(event, reason) {
        let source = address(event.source, 0);
        tracing::debug!(
            slot = event.slot,
            source,
            "a wall has dropped a report of multicast groups (IGMP)"
        );
        return;
    }
    let denied = key
        .as_ref()
        .filter(|_| reason == Some(Reason::PolicyDenied))
        .and_then(|key| denied_by(shared, event, key));
    let pod = key.map_or_else(|| format!("slot {}", event.slot), |key| key.to_string());
    let (outcome, verb) = outcome_words(match event.flags & EVENT_AUDITED {
        0 => refusal::Outcome::Refused,
        _ => refusal::Outcome::Audited,
    });
    tracing::warn!(
        target: "nodemesh::refusal",
        pod = %pod,
        by = %"kernel",
        source = %address(event.source, event.source_port),
        destination = %address(event.destination, event.destination_port),
        protocol = event.protocol,
        outcome = %outcome,
        reason = %reason.map_or("unknown", Reason::code),
        policy = denied.as_deref().map(tracing::field::display),
        remedy = reason.map(Reason::remedy),
        suppressed = event.suppressed,
        "{verb}: {}",
        reason.map_or("the kernel gives a reason that this supervisor doesn't know", Reason::sentence),
    );
}

/// Logs what the kernel programs refuse, for ever. They budget the events themselves.
pub(super) async fn follow(shared: Arc<Shared>, mut events: Events) {
    loop {
        match events.next().await {
            Ok(event) => log_kernel_refusal(&shared, &event),
            Err(e) => {
                tracing::error!(error = %e, "the kernel's refusals can't be read any more; they are still counted");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn addresses_read_as_the_app_would_write_them() {
        assert_eq!(
            address(mesh_common::mapped_v4([10, 0, 0, 2]), 80),
            "10.0.0.2:80"
        );
        assert_eq!(address(Ipv6Addr::LOCALHOST.octets(), 80), "[::1]:80");
        assert_eq!(address([0; 16], 0), "unknown");
    }

    #[test]
    fn a_flood_of_refusals_is_cut_and_recovers() {
        let start = Instant::now();
        let mut budget = LineBudget::new(start);
        let allowed = (0..1_000).filter(|_| budget.allow(start)).count();
        assert_eq!(allowed, 50);
        assert!(budget.allow(start + Duration::from_secs(1)));
        assert_eq!(word("a b\nc"), "a?b?c");
        assert_eq!(clip(&"é".repeat(300)).chars().count(), TEXT_LIMIT);
    }

    #[test]
    fn multicast_reports_are_not_told_as_other_protocols_are() {
        let event = |protocol| RefusalEvent {
            time_ns: 0,
            reason: 0,
            slot: 0,
            source: [0; 16],
            destination: [0; 16],
            source_port: 0,
            destination_port: 0,
            protocol,
            flags: 0,
            suppressed: 0,
        };
        assert!(is_membership(&event(2), Some(Reason::WallProtocol)));
        assert!(!is_membership(&event(2), Some(Reason::WallSource)));
        assert!(!is_membership(&event(132), Some(Reason::WallProtocol)));
    }
}
