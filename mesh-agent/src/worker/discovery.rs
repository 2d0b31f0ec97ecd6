//! Where destinations lead: asked of the supervisor once, kept, pushed on change.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use mesh_api::worker::{
    Destination as DestinationMessage, ResolveDestination, to_supervisor::Message,
};
use mesh_core::reason::Reason;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

pub(crate) use super::destination::{Destination, Endpoint, address_of, bytes_of};
use super::fault::Fault;
use super::metrics::Metrics;
use super::outbox::Outbox;

/// How long a flow waits for a look-up, and how long an unanswered question stands before it
/// is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions without an answer at one time; an app that scans gets no more.
const MAX_PENDING: usize = 1024;
/// Destinations remembered; beyond, expired negative answers and then idle ones go.
const MAX_ENTRIES: usize = 8192;
/// Bounds on the life of a negative answer.
const NEGATIVE_TTL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));

struct Answer {
    destination: Rc<Destination>,
    expires: Option<Instant>,
    used: Cell<Instant>,
}

#[derive(Default)]
struct Entry {
    answer: Option<Answer>,
    asked: Option<Instant>,
    waiting: Vec<oneshot::Sender<Rc<Destination>>>,
}

/// The worker's share of discovery.
pub(crate) struct Discovery {
    outbox: Outbox,
    metrics: Rc<Metrics>,
    entries: RefCell<HashMap<SocketAddr, Entry>>,
}

impl Discovery {
    pub(crate) fn new(outbox: Outbox, metrics: Rc<Metrics>) -> Self {
        Self {
            outbox,
            metrics,
            entries: RefCell::default(),
        }
    }

    /// Where `to` leads. Concurrent calls for one destination ask once.
    pub(crate) async fn resolve(&self, to: SocketAddr) -> Result<Rc<Destination>, Fault> {
        let no_answer = |why: &str| Fault::new(Reason::DiscoveryTimeout, format!("{to}: {why}"));
        let answer = {
            let now = Instant::now();
            let mut entries = self.entries.borrow_mut();
            if let Some(answer) = entries.get(&to).and_then(|entry| entry.fresh(now)) {
                return Ok(answer);
            }
            make_room(&mut entries, now);
            let pending = entries.values().filter(|e| e.asked.is_some()).count();
            let entry = entries.entry(to).or_default();
            entry.waiting.retain(|waiting| !waiting.is_closed());
            if entry.asked.is_none_or(|at| now >= at + ANSWER_TIMEOUT) {
                if pending >= MAX_PENDING {
                    return Err(no_answer("too many look-ups are waiting already"));
                }
                if !self.outbox.try_send(question(to)) {
                    return Err(no_answer("the queue to the supervisor is full"));
                }
                entry.asked = Some(now);
            }
            let (sender, receiver) = oneshot::channel();
            entry.waiting.push(sender);
            receiver
        };
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(destination)) => Ok(destination),
            Ok(Err(_)) | Err(_) => Err(no_answer("no answer within 5 s")),
        }
    }

    /// The last answer on `to`, however old; `None` where there is none.
    pub(crate) fn answer(&self, to: SocketAddr) -> Option<Rc<Destination>> {
        let entries = self.entries.borrow();
        let answer = entries.get(&to)?.answer.as_ref()?;
        Some(answer.destination.clone())
    }

    /// An answer, or a change of one. True where it replaces an answer.
    pub(crate) fn push(&self, message: &DestinationMessage) -> bool {
        let Some(to) = address_of(&message.address)
            .zip(u16::try_from(message.port).ok())
            .map(SocketAddr::from)
        else {
            tracing::warn!("a destination without a valid address was pushed");
            return false;
        };
        let now = Instant::now();
        let ttl =
            Duration::from_millis(message.ttl_ms.into()).clamp(NEGATIVE_TTL.0, NEGATIVE_TTL.1);
        let mut entries = self.entries.borrow_mut();
        // What was not asked for, or is forgotten, is of no use.
        let Some(entry) = entries.get_mut(&to) else {
            return false;
        };
        let before = entry.answer.as_ref().map(|answer| &*answer.destination);
        let destination = Rc::new(Destination::parse(message, before, &self.metrics));
        entry.asked = None;
        let before = entry.answer.replace(Answer {
            expires: (!destination.known).then(|| now + ttl),
            destination: destination.clone(),
            used: Cell::new(now),
        });
        for waiting in entry.waiting.drain(..) {
            // The flow that asked may be gone.
            let _gone = waiting.send(destination.clone());
        }
        before.is_some()
    }

    /// Asks again for everything of use: a new supervisor knows nothing of it.
    pub(crate) async fn ask_again(&self) {
        let now = Instant::now();
        let questions: Vec<_> = {
            let mut entries = self.entries.borrow_mut();
            entries.retain(|_, entry| entry.is_of_use(now));
            entries
                .iter_mut()
                .map(|(to, entry)| {
                    entry.asked = (!entry.waiting.is_empty()).then_some(now);
                    question(*to)
                })
                .collect()
        };
        for question in questions {
            self.outbox.send(question, Vec::new()).await;
        }
    }
}

impl Entry {
    fn fresh(&self, now: Instant) -> Option<Rc<Destination>> {
        let answer = self.answer.as_ref()?;
        if answer.expires.is_some_and(|at| at <= now) {
            return None;
        }
        answer.used.set(now);
        Some(answer.destination.clone())
    }

    fn is_of_use(&self, now: Instant) -> bool {
        let answered = self.answer.as_ref();
        self.is_held() || answered.is_some_and(|a| a.expires.is_none_or(|at| at > now))
    }

    /// Someone waits for it, or an open flow is decided by it.
    fn is_held(&self) -> bool {
        let answered = self.answer.as_ref();
        !self.waiting.is_empty() || answered.is_some_and(|a| Rc::strong_count(&a.destination) > 1)
    }
}

fn make_room(entries: &mut HashMap<SocketAddr, Entry>, now: Instant) {
    if entries.len() < MAX_ENTRIES {
        return;
    }
    entries.retain(|_, entry| entry.is_of_use(now));
    if entries.len() < MAX_ENTRIES {
        return;
    }
    let mut used: Vec<_> = entries
        .values()
        .filter_map(|entry| entry.answer.as_ref().map(|a| a.used.get()))
        .collect();
    used.sort_unstable();
    if let Some(middle) = used.get(used.len() / 2).copied() {
        entries.retain(|_, entry| {
            entry.is_held() || entry.answer.as_ref().is_some_and(|a| a.used.get() > middle)
        });
    }
}

fn question(to: SocketAddr) -> Message {
    Message::ResolveDestination(ResolveDestination {
        address: bytes_of(to.ip()),
        port: to.port().into(),
    })
}
