//! Who peers that come in are: asked of the supervisor once, kept, pushed on change.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use mesh_api::worker::{ResolveSource, SourceInfo, to_supervisor::Message};
use mesh_core::identity::Identity;
use mesh_core::model::ServiceKey;
use mesh_core::policy::Labels;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::discovery::{address_of, bytes_of};
use super::metrics::{Count, Metrics};
use super::outbox::Outbox;

/// How long a flow waits to know its peer, and how long an unanswered question stands before
/// it is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long "not known" is believed without asking again.
const UNKNOWN_TTL: Duration = Duration::from_secs(60);
/// Peers remembered; beyond, those that have no flow are forgotten.
const MAX_SOURCES: usize = 4096;

/// What discovery says of a peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Whose they are. Of a peer that proves another identity they say nothing.
    pub(crate) identity: Identity,
    pub(crate) labels: Labels,
    pub(crate) services: Vec<ServiceKey>,
    /// Whether it is a member of the mesh.
    pub(crate) hbone: bool,
}

impl Attributes {
    /// `None` also for what makes no sense: then the peer is as good as unknown.
    fn parse(info: &SourceInfo) -> Option<Rc<Self>> {
        info.known.then_some(())?;
        let services = info.services.iter().map(|key| key.as_str().into());
        Some(Rc::new(Self {
            identity: info.identity.parse().ok()?,
            labels: info.labels.clone(),
            services: services.collect(),
            hbone: info.hbone,
        }))
    }
}

/// The supervisor's word on one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It has not answered.
    None,
    /// Discovery knows nobody there.
    Unknown,
    /// Discovery knows this peer.
    Known(Rc<Attributes>),
}

/// One address that peers come from.
pub(crate) struct Source {
    address: IpAddr,
    word: RefCell<Word>,
    /// When it was last asked for, or told.
    at: Cell<Option<Instant>>,
    uncounted: Cell<u64>,
    told: Notify,
}

impl Source {
    pub(crate) fn word(&self) -> Word {
        self.word.borrow().clone()
    }

    /// Waits until the supervisor has said what is looked for; `None` if it does not in time.
    pub(crate) async fn told<T>(&self, looked_for: impl Fn(Word) -> Option<T>) -> Option<T> {
        let waiting = async {
            loop {
                let mut told = pin!(self.told.notified());
                told.as_mut().enable();
                if let Some(found) = looked_for(self.word()) {
                    return found;
                }
                told.await;
            }
        };
        timeout(ANSWER_TIMEOUT, waiting).await.ok()
    }

    /// Whether it is time to ask (again).
    fn is_due(&self, now: Instant) -> bool {
        let patience = match *self.word.borrow() {
            Word::None => ANSWER_TIMEOUT,
            Word::Unknown => UNKNOWN_TTL,
            // Changes are pushed.
            Word::Known(_) => return false,
        };
        self.at.get().is_none_or(|at| at + patience <= now)
    }
}

/// Every peer that came in lately.
pub(crate) struct Sources {
    outbox: Outbox,
    metrics: Rc<Metrics>,
    all: RefCell<HashMap<IpAddr, Rc<Source>>>,
}

impl Sources {
    pub(crate) fn new(outbox: Outbox, metrics: Rc<Metrics>) -> Self {
        Self {
            outbox,
            metrics,
            all: RefCell::default(),
        }
    }

    /// The peer at this address, asked for if need be; the answer is not waited for. While
    /// somebody holds it, it is told of every change.
    pub(crate) fn look_up(&self, address: IpAddr) -> Rc<Source> {
        let source = self.entry(address);
        self.ask(&source);
        source
    }

    fn entry(&self, address: IpAddr) -> Rc<Source> {
        let mut all = self.all.borrow_mut();
        if all.len() >= MAX_SOURCES && !all.contains_key(&address) {
            all.retain(|_, source| Rc::strong_count(source) > 1);
        }
        let source = all.entry(address).or_insert_with(|| {
            Rc::new(Source {
                address,
                word: RefCell::new(Word::None),
                at: Cell::new(None),
                uncounted: Cell::new(0),
                told: Notify::new(),
            })
        });
        source.clone()
    }

    /// Asks who this is, where that is not known and nobody has asked lately.
    pub(crate) fn ask(&self, source: &Source) {
        let now = Instant::now();
        if source.is_due(now) && self.outbox.try_send(question(source.address)) {
            source.at.set(Some(now));
        }
    }

    /// A tunnel came in from here: counted when discovery does not know its peer.
    pub(crate) fn note_tunnel(&self, source: &Source) {
        match *source.word.borrow() {
            Word::Known(_) => {}
            Word::Unknown => self.metrics.add(Count::UnknownPeers, 1),
            Word::None => source.uncounted.set(source.uncounted.get() + 1),
        }
    }

    /// The supervisor's word on a peer, or a change of it. True where it changes what was
    /// known before.
    pub(crate) fn push(&self, info: &SourceInfo) -> bool {
        let all = self.all.borrow();
        let source = address_of(&info.address).and_then(|address| all.get(&address));
        // What was not asked for, or is forgotten, is of no use.
        let Some(source) = source else { return false };
        let uncounted = source.uncounted.take();
        let word = match Attributes::parse(info) {
            Some(attributes) => Word::Known(attributes),
            None => Word::Unknown,
        };
        if word == Word::Unknown {
            self.metrics.add(Count::UnknownPeers, uncounted);
        }
        source.at.set(Some(Instant::now()));
        let changed = *source.word.borrow() != word;
        *source.word.borrow_mut() = word;
        source.told.notify_waiters();
        changed
    }

    /// Asks again for everybody: a new supervisor knows nothing of it.
    pub(crate) async fn ask_again(&self) {
        let now = Instant::now();
        let questions: Vec<_> = {
            let mut all = self.all.borrow_mut();
            all.retain(|_, source| Rc::strong_count(source) > 1);
            let asked = all.values().inspect(|source| source.at.set(Some(now)));
            asked.map(|source| question(source.address)).collect()
        };
        for question in questions {
            self.outbox.send(question, Vec::new()).await;
        }
    }
}

fn question(address: IpAddr) -> Message {
    Message::ResolveSource(ResolveSource {
        address: bytes_of(address),
    })
}
