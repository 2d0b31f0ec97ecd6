//! Tells the supervisor of refusals and tunnels: all are counted, so many a second are told.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use mesh_api::worker::refusal::Outcome;
use mesh_api::worker::{Refusal, TunnelOpened, to_supervisor::Message};
use mesh_core::identity::Identity;
use mesh_core::rate::TokenBucket;
use tokio::time::Instant;

use super::fault::{Direction, Fault};
use super::metrics::{Count, Metrics};
use super::outbox::Outbox;

/// Messages a second that a worker may send on average.
const PER_SECOND: u32 = 10;
/// Messages it may send at once.
const BURST: u32 = 20;

/// Counts and reports.
pub(crate) struct Reports {
    metrics: Rc<Metrics>,
    outbox: Outbox,
    budget: RefCell<TokenBucket>,
    suppressed: Cell<u32>,
}

impl Reports {
    pub(crate) fn new(metrics: Rc<Metrics>, outbox: Outbox) -> Self {
        let budget = TokenBucket::new(PER_SECOND, BURST, Instant::now().into_std());
        Self {
            metrics,
            outbox,
            budget: RefCell::new(budget),
            suppressed: Cell::new(0),
        }
    }

    /// Reports a tunnel that stands, within the budget.
    pub(crate) fn tunnel_opened(
        &self,
        direction: Direction,
        peer: &Identity,
        address: SocketAddr,
        tls: String,
    ) {
        if self.within_budget() {
            // The gauge has it; the message is for the log.
            let _told = self.outbox.try_send(Message::TunnelOpened(TunnelOpened {
                direction: direction.as_str().to_owned(),
                peer_identity: peer.to_string(),
                peer_address: address.to_string(),
                tls,
            }));
        }
    }

    /// Counts a refusal and, within the budget, reports it.
    pub(crate) fn refusal(
        &self,
        direction: Direction,
        fault: &Fault,
        source: impl std::fmt::Display,
        destination: impl std::fmt::Display,
    ) {
        self.tell(Outcome::Refused, direction, fault, source, destination);
    }

    /// The same for what is told of flows that were, or had been, let through.
    pub(crate) fn tell(
        &self,
        outcome: Outcome,
        direction: Direction,
        fault: &Fault,
        source: impl std::fmt::Display,
        destination: impl std::fmt::Display,
    ) {
        self.metrics.judged(outcome, direction, fault.reason);
        let told = self.within_budget()
            && self.outbox.try_send(Message::Refusal(Refusal {
                reason: fault.reason.code().to_owned(),
                direction: direction.as_str().to_owned(),
                source: source.to_string(),
                destination: destination.to_string(),
                peer_identity: fault.peer.clone(),
                detail: fault.detail.clone(),
                suppressed: self.suppressed.get(),
                policy: fault.policy.as_deref().unwrap_or_default().to_owned(),
                outcome: outcome.into(),
            }));
        if told {
            self.suppressed.set(0);
        } else {
            self.suppressed.set(self.suppressed.get().saturating_add(1));
            self.metrics.add(Count::RefusalsSuppressed, 1);
        }
    }

    /// The same for a tunnel that may not go on, and takes its flows along.
    pub(crate) fn tunnel_cut(
        &self,
        direction: Direction,
        fault: &Fault,
        peer: SocketAddr,
        streams: u64,
    ) {
        let ends = match direction {
            Direction::Inbound => (peer.to_string(), String::new()),
            Direction::Outbound => (String::new(), peer.to_string()),
        };
        let detail = format!(
            "a tunnel with {streams} streams was ended: {}",
            fault.detail
        );
        let fault = Fault {
            detail,
            ..fault.clone()
        };
        self.tell(Outcome::Cut, direction, &fault, ends.0, ends.1);
    }

    fn within_budget(&self) -> bool {
        self.budget.borrow_mut().take(Instant::now().into_std())
    }
}
