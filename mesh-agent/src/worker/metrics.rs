//! What the worker counts. One thread, so plain cells; the supervisor adds pod and node.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::pin::pin;
use std::rc::Rc;

use mesh_api::worker::Counter;
use mesh_api::worker::refusal::Outcome;
use mesh_core::reason::Reason;
use tokio::sync::Notify;

use super::fault::Direction;

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $label:literal;)+) => {
        /// A counter or, where its name has no `_total`, a gauge.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Count {
            $($(#[doc = $doc])+ $variant,)+
        }

        const COUNTS: &[(&str, &str)] = &[$(($name, $label),)+];
    };
}

counts! {
    /// Captured connections accepted.
    OutboundConnections = "nodemesh_connections_total", "outbound";
    /// Tunnel streams accepted for the app.
    InboundConnections = "nodemesh_connections_total", "inbound";
    /// Captured connections that are open.
    OutboundOpen = "nodemesh_connections_open", "outbound";
    /// Tunnel streams to the app that are open.
    InboundOpen = "nodemesh_connections_open", "inbound";
    /// Bytes read from the app for others.
    OutboundSent = "nodemesh_bytes_total", "outbound_sent";
    /// Bytes from others written to the app that called them.
    OutboundReceived = "nodemesh_bytes_total", "outbound_received";
    /// Bytes the app answered to its callers.
    InboundSent = "nodemesh_bytes_total", "inbound_sent";
    /// Bytes of callers written to the app.
    InboundReceived = "nodemesh_bytes_total", "inbound_received";
    /// TLS handshakes done as client.
    HandshakesOutbound = "nodemesh_handshakes_total", "outbound";
    /// TLS handshakes done as server.
    HandshakesInbound = "nodemesh_handshakes_total", "inbound";
    /// Tunnels to others that are open.
    TunnelsOutbound = "nodemesh_tunnels_open", "outbound";
    /// Tunnels of others that are open.
    TunnelsInbound = "nodemesh_tunnels_open", "inbound";
    /// Streams of others' tunnels that are open.
    StreamsInbound = "nodemesh_streams_open", "inbound";
    /// Connections that were accepted and are not done with: the app's, plain ones, callers' tunnels
    /// from their handshake on.
    InHand = "nodemesh_accepted_open", "";
    /// Bytes of flows that wait in this worker for a socket or a window.
    Buffered = "nodemesh_buffered_bytes", "";
    /// Flows that were reset because too many bytes waited in this worker.
    Shed = "nodemesh_flows_shed_total", "";
    /// Tunnels from peers that discovery does not know.
    UnknownPeers = "nodemesh_unknown_peers_total", "";
    /// `accept` failed for want of descriptors or memory.
    AcceptExhausted = "nodemesh_accept_errors_total", "exhausted";
    /// `accept` rested because more came than is let in and refused in a second.
    AcceptRested = "nodemesh_accept_rests_total", "";
    /// `accept` failed because the caller was gone.
    AcceptAborted = "nodemesh_accept_errors_total", "aborted";
    /// A listener was killed and made anew.
    ListenerRemade = "nodemesh_listeners_remade_total", "";
    /// Refusal messages that the rate limit held back.
    RefusalsSuppressed = "nodemesh_refusal_messages_suppressed_total", "";
    /// Endpoints that discovery gave and that make no sense.
    BadEndpoints = "nodemesh_bad_endpoints_total", "";
    /// Peers that took no tunnel on the port of their app, and were called on 15008 then.
    OriginalPortRefused = "nodemesh_original_port_refused_total", "";
    /// Endpoints left alone for a while after failures in a row.
    OutlierEjections = "nodemesh_outlier_ejections_total", "";
    /// Connections of the app to places outside the mesh, in plain.
    PlainOutbound = "nodemesh_plain_connections_total", "outbound";
    /// Connections to the app from outside the mesh, in plain.
    PlainInbound = "nodemesh_plain_connections_total", "inbound";
    /// Policies that could not be read; the one before each stayed in force.
    PoliciesUnreadable = "nodemesh_policies_unreadable_total", "";
    /// New certificates proven to peers in tunnels that stood.
    ProofsSent = "nodemesh_tunnel_proofs_total", "sent";
    /// New certificates of peers taken in tunnels that stood.
    ProofsTaken = "nodemesh_tunnel_proofs_total", "taken";
    /// New certificates of peers proven in tunnels that stood, and not trusted when they came.
    ProofsWaiting = "nodemesh_tunnel_proofs_total", "untrusted";
    /// Trust bundles that could not be read or used; the one before each stayed in force.
    TrustUnreadable = "nodemesh_trust_unreadable_total", "";
    /// Probes of the app that it answered well.
    HealthChecksPassed = "nodemesh_health_checks_total", "passed";
    /// Probes of the app that failed.
    HealthChecksFailed = "nodemesh_health_checks_total", "failed";
}

/// All counts of one worker.
pub(crate) struct Metrics {
    counts: Box<[Cell<u64>]>,
    /// By [`Outcome`].
    judged: [ByReason; 3],
    handshake_failures: ByReason,
    failovers: Box<[Cell<u64>]>,
    /// By [`Direction`]: when peers' certificates of tunnels that stand end, and of how many.
    ends: [RefCell<BTreeMap<i64, u64>>; 2],
    opened: Notify,
    closed: Notify,
}

/// By [`Direction`] and [`Reason`].
type ByReason = [Box<[Cell<u64>]>; 2];

fn zeroes(n: usize) -> Box<[Cell<u64>]> {
    (0..n).map(|_| Cell::new(0)).collect()
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let reasons = || [zeroes(Reason::ALL.len()), zeroes(Reason::ALL.len())];
        Self {
            counts: zeroes(COUNTS.len()),
            judged: [reasons(), reasons(), reasons()],
            handshake_failures: reasons(),
            failovers: zeroes(Reason::ALL.len()),
            ends: Default::default(),
            opened: Notify::new(),
            closed: Notify::new(),
        }
    }

    pub(crate) fn add(&self, count: Count, n: u64) {
        let cell = &self.counts[count as usize];
        cell.set(cell.get() + n);
    }

    /// Lowers a gauge.
    pub(crate) fn subtract(&self, gauge: Count, n: u64) {
        let cell = &self.counts[gauge as usize];
        cell.set(cell.get().saturating_sub(n));
    }

    pub(crate) fn get(&self, count: Count) -> u64 {
        self.counts[count as usize].get()
    }

    /// Waits until no flow is open, and nothing that was accepted is still to become one.
    pub(crate) async fn idle(&self) {
        const BUSY: [Count; 3] = [Count::InHand, Count::InboundOpen, Count::OutboundOpen];
        loop {
            let mut closed = pin!(self.closed.notified());
            closed.as_mut().enable();
            if BUSY.iter().all(|gauge| self.get(*gauge) == 0) {
                return;
            }
            closed.await;
        }
    }

    /// Waits until a flow is open.
    pub(crate) async fn busy(&self) {
        while self.get(Count::InboundOpen) == 0 && self.get(Count::OutboundOpen) == 0 {
            self.opened.notified().await;
        }
    }

    /// Raises a gauge until the guard is dropped.
    pub(crate) fn open(self: &Rc<Self>, gauge: Count) -> OpenGuard {
        self.add(gauge, 1);
        self.opened.notify_one();
        OpenGuard {
            metrics: self.clone(),
            gauge,
        }
    }

    /// A flow was refused, let through in audit, or cut.
    pub(crate) fn judged(&self, outcome: Outcome, direction: Direction, reason: Reason) {
        let cell = &self.judged[outcome as usize][direction as usize][reason as usize];
        cell.set(cell.get() + 1);
    }

    pub(crate) fn handshake_failed(&self, direction: Direction, reason: Reason) {
        let cell = &self.handshake_failures[direction as usize][reason as usize];
        cell.set(cell.get() + 1);
    }

    /// A connection went on to another endpoint, for this reason.
    pub(crate) fn failed_over(&self, reason: Reason) {
        let cell = &self.failovers[reason as usize];
        cell.set(cell.get() + 1);
    }

    /// The peer's certificate of a tunnel ends another time than it did, in seconds since the
    /// epoch; `None` before and after the tunnel.
    pub(crate) fn tunnel_ends(&self, direction: Direction, before: Option<i64>, now: Option<i64>) {
        let mut ends = self.ends[direction as usize].borrow_mut();
        if let Some(now) = now {
            *ends.entry(now).or_default() += 1;
        }
        if let Some(before) = before
            && let Entry::Occupied(mut entry) = ends.entry(before)
        {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// Every count, and every reason that has occurred.
    pub(crate) fn snapshot(&self) -> Vec<Counter> {
        let counter = |name: &str, label: &str, cell: &Cell<u64>| Counter {
            name: name.to_owned(),
            label: label.to_owned(),
            value: cell.get(),
        };
        let mut all: Vec<_> = COUNTS
            .iter()
            .zip(&self.counts)
            .map(|((name, label), cell)| counter(name, label, cell))
            .collect();
        let [refused, audited, cut] = &self.judged;
        let by_reason = [
            ("nodemesh_refusals", refused),
            ("nodemesh_audited", audited),
            ("nodemesh_cut", cut),
            ("nodemesh_handshake_failures", &self.handshake_failures),
        ];
        let mut of_reasons = |name: String, cells: &[Cell<u64>]| {
            let occurred = Reason::ALL.iter().zip(cells);
            all.extend(
                occurred
                    .filter(|(_, cell)| cell.get() > 0)
                    .map(|(reason, cell)| counter(&name, reason.code(), cell)),
            );
        };
        for (name, cells) in by_reason {
            for direction in [Direction::Inbound, Direction::Outbound] {
                let name = format!("{name}_{}_total", direction.as_str());
                of_reasons(name, &cells[direction as usize]);
            }
        }
        of_reasons("nodemesh_failovers_total".to_owned(), &self.failovers);
        for direction in [Direction::Inbound, Direction::Outbound] {
            let ends = self.ends[direction as usize].borrow();
            all.extend(ends.keys().next().map(|first| Counter {
                name: "nodemesh_tunnel_peer_not_after_seconds".to_owned(),
                label: direction.as_str().to_owned(),
                value: u64::try_from(*first).unwrap_or(0),
            }));
        }
        all
    }
}

/// Keeps a gauge raised.
pub(crate) struct OpenGuard {
    metrics: Rc<Metrics>,
    gauge: Count,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.metrics.subtract(self.gauge, 1);
        self.metrics.closed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_has_every_count_once_and_only_reasons_that_occurred() {
        let metrics = Rc::new(Metrics::new());
        metrics.add(Count::BadEndpoints, 2);
        metrics.judged(
            Outcome::Refused,
            Direction::Inbound,
            Reason::InboundPlaintext,
        );
        metrics.judged(Outcome::Cut, Direction::Outbound, Reason::PolicyDenied);
        let guard = metrics.open(Count::InboundOpen);
        let find = |name: &str, label: &str| {
            let all = metrics.snapshot();
            let found: Vec<_> = all
                .iter()
                .filter(|c| c.name == name && c.label == label)
                .map(|c| c.value)
                .collect();
            assert!(found.len() <= 1, "{name} {label} twice");
            found.first().copied()
        };
        assert_eq!(find("nodemesh_bad_endpoints_total", ""), Some(2));
        assert_eq!(
            find("nodemesh_refusals_inbound_total", "inbound_plaintext"),
            Some(1)
        );
        assert_eq!(find("nodemesh_refusals_inbound_total", "peer_is_ca"), None);
        assert_eq!(
            find("nodemesh_cut_outbound_total", "policy_denied"),
            Some(1)
        );
        assert_eq!(find("nodemesh_connections_open", "inbound"), Some(1));
        drop(guard);
        assert_eq!(find("nodemesh_connections_open", "inbound"), Some(0));
        assert_eq!(metrics.snapshot().len(), COUNTS.len() + 2);
    }
}
