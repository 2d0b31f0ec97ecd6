//! A pod's workers, from their start or adoption to their end: the supervisor's side of their
//! channels.
//!
//! A [`Link`] is one worker with what is under way with it; [`Session`] is a link in the hands of
//! its pod's task, while it hears what has happened.

mod certificates;
mod changes;
mod end;
mod hear;

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::worker::to_worker::Message as ForWorker;
use mesh_api::worker::{
    Certificate, Counter, Drain, Health, MetricsRequest, Replace, Resync, Start, ToSupervisor,
    ToWorker,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::budget::{Budget, NodeBudget};
use super::events;
use super::join::now_s;
use super::legacy::Legacy;
use super::pods::{Part, PodKey};
use super::signing::{Signing, SigningEvent, next_signing};
use super::trust::Bundle;
use super::until::Until;
use super::workers::PodTask;
use crate::channel::SupervisorChannel;
use crate::handed::Handed;
use crate::sandbox::Newborn;
use changes::Told;

/// Messages that may wait for a worker; with more, nothing further is read from it.
const OUTBOX_LIMIT: usize = 1_024;
/// How long a worker may take for its next step towards being ready.
const STEP_PATIENCE: Duration = Duration::from_secs(5);
/// Between two signing requests of one worker that go to control.
const SIGNING_INTERVAL: Duration = Duration::from_secs(1);
/// How long a worker whose channel is closed may take to end.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// How much longer than it was given a draining worker may take to cut what is left.
const CUT_PATIENCE: Duration = Duration::from_secs(3);
/// How often a draining worker is asked what is left.
const ASK_DRAINING: Duration = Duration::from_secs(2);
/// When an enrolment that the kernel refused is tried again.
const ENROL_RETRY: Duration = Duration::from_secs(1);

/// How a pod's workers came to their end.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The worker that serves is gone, unasked; says how.
    Died(String),
    /// The pod is leaving; its workers may take that long to finish what is open.
    Leave(Duration),
    /// The pod can't be served any more and is cut off; the workers are gone.
    Unserved,
    /// The supervisor is going away; the workers stay.
    Detached,
}

type Outbox = VecDeque<(ToWorker, Vec<OwnedFd>)>;

async fn send_first(channel: &SupervisorChannel, outbox: &Outbox) -> io::Result<()> {
    match outbox.front() {
        Some((message, fds)) => {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            channel.send(message, &fds).await
        }
        None => pending().await,
    }
}

pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// A message, or the end of the channel.
type Received = io::Result<Option<(ToSupervisor, Vec<Handed>)>>;

/// What has happened with a worker.
pub(super) enum Event {
    Received(Box<Received>),
    Ended,
    Sent(io::Result<()>),
    Signing(SigningEvent),
    /// Its budget of messages is used up.
    HeldBack,
    DiscoveryChanged,
    TrustChanged,
    Tick,
}

/// One worker and what is under way with it.
pub(super) struct Link {
    pub(super) part: Part,
    pub(super) worker: Newborn,
    /// It runs another program than those that are started now.
    pub(super) outdated: bool,
    /// It speaks another version of the protocol: nothing is said to it but that it is replaced.
    pub(super) foreign: bool,
    /// An earlier supervisor has started it.
    adopted: bool,
    pub(super) started: Instant,
    /// Of a worker that is to take over: what the pod has from it when it does.
    pub(super) legacy: Legacy,
    pod: PodKey,
    channel: SupervisorChannel,
    death: AsyncFd<OwnedFd>,
    outbox: Outbox,
    told: Told,
    trust: watch::Receiver<Arc<Bundle>>,
    budget: Budget,
    /// Its budget is used up, so nothing is read.
    closed: bool,
    lines: events::LineBudget,
    signing: Option<Signing>,
    signed_at: Option<Instant>,
    /// A request that came too soon after another: when its turn is.
    sign_later: Option<(Instant, Vec<u8>)>,
    scrapes: Vec<(u64, oneshot::Sender<Vec<Counter>>)>,
    next_scrape: u64,
    /// When the worker counts as stuck, unless it takes its next step, or has to be gone.
    deadline: Option<Instant>,
    /// The worker is ready but the kernel refused the enrolment: when to try again.
    enrol_at: Option<Instant>,
    /// A draining worker is asked then what is left.
    ask_at: Option<Instant>,
    pub(super) ready: bool,
    pub(super) certificate_not_after_s: Option<i64>,
    /// Of a worker that is to take over: what it said of its app.
    health: Option<Health>,
    version: String,
    last_words: Option<String>,
    /// What it has counted, told on its way out.
    pub(super) last_counts: Vec<Counter>,
}

/// What happens next with any of these, and with which.
pub(super) async fn next(links: &mut [Link], work: &NodeBudget) -> (usize, Event) {
    if links.is_empty() {
        return pending().await;
    }
    let all = links.iter_mut().map(|link| Box::pin(link.next(work)));
    let (event, at, _) = select_all(all).await;
    (at, event)
}

impl Link {
    pub(super) fn new(
        task: &PodTask,
        worker: Newborn,
        part: Part,
        adopted: bool,
    ) -> Result<Self, (Newborn, io::Error)> {
        let registered = (|| {
            let channel = SupervisorChannel::new(worker.channel.try_clone()?)?;
            let pidfd = worker.pidfd.try_clone()?;
            // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced or closed in it.
            let death = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
                .map_err(|e| e.into_parts().1)?;
            Ok((channel, death))
        })();
        let (channel, death) = match registered {
            Ok(registered) => registered,
            Err(e) => return Err((worker, e)),
        };
        let now = Instant::now();
        let mut link = Self {
            part,
            outdated: adopted && task.shared.is_outdated(worker.pid),
            foreign: false,
            adopted,
            started: now,
            legacy: Legacy::default(),
            pod: task.record.key.clone(),
            worker,
            channel,
            death,
            outbox: Outbox::new(),
            told: Told::new(&task.shared.discovery),
            trust: task.shared.trust.changes(),
            budget: Budget::new(now),
            closed: false,
            lines: events::LineBudget::new(now),
            signing: None,
            signed_at: None,
            sign_later: None,
            scrapes: Vec::new(),
            next_scrape: 1,
            deadline: Some(now + STEP_PATIENCE),
            enrol_at: None,
            ask_at: None,
            ready: false,
            certificate_not_after_s: None,
            health: None,
            version: String::new(),
            last_words: None,
            last_counts: Vec::new(),
        };
        if let Part::Draining(until) = part {
            link.drains_until(now + until.left());
        }
        Ok(link)
    }

    fn post(&mut self, message: ForWorker) {
        let stable = matches!(message, ForWorker::Replace(_) | ForWorker::Drain(_));
        if self.foreign && !stable {
            return;
        }
        self.outbox.push_back((
            ToWorker {
                message: Some(message),
            },
            Vec::new(),
        ));
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self.part, Part::Draining(_))
    }

    /// The time that it has for its next step begins now.
    pub(super) fn begin_step(&mut self) {
        if !self.is_draining() && self.deadline.is_some() {
            self.deadline = Some(Instant::now() + STEP_PATIENCE);
        }
    }

    fn drains_until(&mut self, end: Instant) {
        self.deadline = Some(end + CUT_PATIENCE);
        self.enrol_at = None;
        self.sign_later = None;
        self.signing = None;
        self.ask_at = Some(Instant::now());
    }

    /// The worker is replaced: it takes nothing new, and has this long for what it has.
    pub(super) fn replace(&mut self, drain: Duration, until: Until) {
        let deadline_ms = u32::try_from(drain.as_millis()).unwrap_or(u32::MAX);
        self.part = Part::Draining(until);
        self.drains_until(Instant::now() + drain);
        self.post(ForWorker::Replace(Replace { deadline_ms }));
    }

    fn post_drain(&mut self, drain: Duration) {
        let deadline_ms = u32::try_from(drain.as_millis()).unwrap_or(u32::MAX);
        self.post(ForWorker::Drain(Drain { deadline_ms }));
    }

    /// Waits for what happens next. Dropping it loses nothing.
    async fn next(&mut self, work: &NodeBudget) -> Event {
        let backlog = self.outbox.len() >= OUTBOX_LIMIT;
        let closed_until = self.budget.closed_until(work, Instant::now());
        let was_closed = std::mem::replace(&mut self.closed, closed_until.is_some());
        if self.closed && !was_closed {
            return Event::HeldBack;
        }
        let sign_at = self.sign_later.as_ref().map(|(at, _)| *at);
        let wake = [
            self.deadline,
            self.enrol_at,
            self.ask_at,
            sign_at,
            closed_until,
        ];
        let wake = wake.into_iter().flatten().min();
        tokio::select! {
            biased;
            received = self.channel.recv_from_anybody(), if !backlog && closed_until.is_none() => {
                Event::Received(Box::new(received))
            }
            _ = self.death.readable() => Event::Ended,
            sent = send_first(&self.channel, &self.outbox) => Event::Sent(sent),
            event = next_signing(&mut self.signing) => Event::Signing(event),
            Ok(()) = self.told.changes.changed() => Event::DiscoveryChanged,
            Ok(()) = self.trust.changed() => Event::TrustChanged,
            () = until(wake) => Event::Tick,
        }
    }

    pub(super) fn scrape(&mut self, reply: Option<oneshot::Sender<Vec<Counter>>>) {
        self.scrapes.retain(|(_, waiting)| !waiting.is_closed());
        let id = self.next_scrape;
        self.next_scrape += 1;
        self.scrapes.extend(reply.map(|reply| (id, reply)));
        self.post(ForWorker::MetricsRequest(MetricsRequest { id }));
    }
}

/// A worker in the hands of its pod's task.
pub(super) struct Session<'a> {
    pub(super) task: &'a mut PodTask,
    pub(super) link: &'a mut Link,
}

impl Session<'_> {
    /// First words to a worker that was just started.
    pub(super) fn greet(&mut self) -> io::Result<()> {
        self.task.legacy.drop_dead();
        let (mut fds, mut duplicates) = self.task.legacy.hand_over()?;
        if let Some((kind, fd)) = self.task.memory_used() {
            fds.push(kind);
            duplicates.push(fd);
        }
        let limits = self.task.limits();
        self.link.told.limits = Some(limits);
        let start = Start {
            protocol_version: WORKER_PROTOCOL_VERSION,
            instance: self.task.shared.config.instance.clone(),
            node: self.task.shared.config.node.clone(),
            pod: Some(self.task.introduction()),
            limits: Some(limits),
            fds,
        };
        let message = Some(ForWorker::Start(start));
        self.link
            .outbox
            .push_back((ToWorker { message }, duplicates));
        self.post_trust();
        self.discovery_changed();
        self.post_certificate();
        Ok(())
    }

    /// First words to a worker that an earlier supervisor started.
    pub(super) fn resync(&mut self) {
        self.link.post(ForWorker::Resync(Resync {}));
        self.post_trust();
        self.discovery_changed();
        // What the earlier supervisor may not have come to, though its record says so.
        match self.link.part {
            Part::Serving => {}
            Part::Next => self.post_certificate(),
            Part::Draining(until) => self.link.replace(until.left(), until),
        }
    }

    /// The certificate of the worker before, if there is one that goes with its key.
    fn post_certificate(&mut self) {
        if let Some(svid) = self.task.legacy.valid_svid(now_s()) {
            let chain = svid.chain.clone();
            self.link
                .post(ForWorker::Certificate(Certificate { chain }));
        }
    }

    fn post_trust(&mut self) {
        let bundle = self.link.trust.borrow_and_update().clone();
        for part in bundle.for_worker() {
            self.link.post(ForWorker::TrustBundle(part));
        }
    }
}
