//! One running worker, from its start or adoption to its end: the supervisor's side of the
//! channel.

mod certificates;
mod changes;
mod end;

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::worker::to_supervisor::Message as FromWorker;
use mesh_api::worker::to_worker::Message as ForWorker;
use mesh_api::worker::{Certificate, Counter, MetricsRequest, Resync, Start, ToWorker};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::budget::Budget;
use super::events;
use super::join::now_s;
use super::signing::{Signing, next_signing};
use super::trust::Bundle;
use super::workers::{Command, PodTask};
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
/// When an enrolment that the kernel refused is tried again.
const ENROL_RETRY: Duration = Duration::from_secs(1);

/// How a session came to its end.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The worker is gone, unasked; says how.
    Died(String),
    /// The pod is leaving; its worker may take that long to finish what is open.
    Leave(Duration),
    /// The pod can't be served any more and is cut off; the worker is gone.
    Unserved,
    /// The supervisor is going away; the worker stays.
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

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// One worker and what is under way with it.
pub(super) struct Session<'a> {
    task: &'a mut PodTask,
    worker: &'a Newborn,
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
    /// When the worker counts as stuck, unless it takes its next step.
    deadline: Option<Instant>,
    /// The worker is ready but the kernel refused the enrolment: when to try again.
    enrol_at: Option<Instant>,
    ready: bool,
    last_words: Option<String>,
}

impl<'a> Session<'a> {
    pub(super) fn new(task: &'a mut PodTask, worker: &'a Newborn) -> io::Result<Self> {
        let channel = SupervisorChannel::new(worker.channel.try_clone()?)?;
        let pidfd = worker.pidfd.try_clone()?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced or closed in it.
        let death = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
            .map_err(|e| e.into_parts().1)?;
        let now = Instant::now();
        Ok(Self {
            told: Told::new(&task.shared.discovery),
            trust: task.shared.trust.changes(),
            task,
            worker,
            channel,
            death,
            outbox: Outbox::new(),
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
            ready: false,
            last_words: None,
        })
    }

    fn post(&mut self, message: ForWorker) {
        self.outbox.push_back((
            ToWorker {
                message: Some(message),
            },
            Vec::new(),
        ));
    }

    /// First words to a worker that was just started.
    pub(super) fn greet(&mut self) -> io::Result<()> {
        self.task.legacy.drop_dead();
        let (mut fds, mut duplicates) = self.task.legacy.hand_over()?;
        if let Some((kind, fd)) = self.task.memory_used() {
            fds.push(kind);
            duplicates.push(fd);
        }
        let limits = self.task.limits();
        self.told.limits = Some(limits);
        let start = Start {
            protocol_version: WORKER_PROTOCOL_VERSION,
            instance: self.task.shared.config.instance.clone(),
            node: self.task.shared.config.node.clone(),
            pod: Some(self.task.introduction()),
            limits: Some(limits),
            fds,
        };
        let message = Some(ForWorker::Start(start));
        self.outbox.push_back((ToWorker { message }, duplicates));
        self.post_trust();
        self.discovery_changed();
        if let Some(svid) = self.task.legacy.valid_svid(now_s()) {
            let chain = svid.chain.clone();
            self.post(ForWorker::Certificate(Certificate { chain }));
        }
        Ok(())
    }

    /// First words to a worker that an earlier supervisor started.
    pub(super) fn resync(&mut self) {
        self.post(ForWorker::Resync(Resync {}));
        self.post_trust();
        self.discovery_changed();
    }

    fn post_trust(&mut self) {
        let bundle = self.trust.borrow_and_update().clone();
        for part in bundle.for_worker() {
            self.post(ForWorker::TrustBundle(part));
        }
    }

    /// Serves the worker until it ends or the pod leaves.
    pub(super) async fn run(&mut self) -> SessionEnd {
        loop {
            let backlog = self.outbox.len() >= OUTBOX_LIMIT;
            let closed_until = self.closed_until();
            let sign_at = self.sign_later.as_ref().map(|(at, _)| *at);
            let wake = [self.deadline, self.enrol_at, sign_at, closed_until];
            let wake = wake.into_iter().flatten().min();
            let fault = tokio::select! {
                biased;
                command = self.task.commands.recv() => match command {
                    Some(Command::Leave(drain)) => return SessionEnd::Leave(drain),
                    Some(Command::Metrics(reply)) => { self.scrape(reply); Ok(()) }
                    None => return SessionEnd::Detached,
                },
                received = self.channel.recv_from_anybody(), if !backlog && closed_until.is_none() => {
                    match received {
                        Ok(Some((message, fds))) => self.hear(message.message, fds),
                        Ok(None) => return self.bury(END_PATIENCE).await,
                        Err(e) => Err(format!("unreadable: {e}")),
                    }
                }
                _ = self.death.readable() => return self.bury(END_PATIENCE).await,
                sent = send_first(&self.channel, &self.outbox) => match sent {
                    Ok(()) => { self.sent(); Ok(()) }
                    Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                        self.sent();
                        tracing::error!(pod = %self.task.record.key, error = %e, "message to the worker left out");
                        Ok(())
                    }
                    Err(_) => return self.bury(END_PATIENCE).await,
                },
                _ = self.task.watch.due() => {
                    self.task.settle_budget();
                    if self.task.look() {
                        self.bury(Duration::ZERO).await;
                        return SessionEnd::Unserved;
                    }
                    Ok(())
                }
                event = next_signing(&mut self.signing) => { self.signing_event(event); Ok(()) }
                Ok(()) = self.told.changes.changed() => { self.discovery_changed(); Ok(()) }
                Ok(()) = self.trust.changed() => { self.post_trust(); Ok(()) }
                () = until(wake) => self.tick(),
            };
            if let Err(why) = fault {
                tracing::error!(pod = %self.task.record.key, pid = self.worker.pid, why, "the worker broke the protocol or is stuck: killing it");
                self.last_words = Some(why);
                return self.bury(Duration::ZERO).await;
            }
        }
    }

    /// Until when nothing more is to be read from the worker. That it is so is counted and told.
    fn closed_until(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let until = self.budget.closed_until(&self.task.shared.work, now);
        if until.is_some() && !self.closed {
            self.task.held_back("messages");
            if self.lines.allow(now) {
                tracing::warn!(pod = %self.task.record.key, "the worker sends more messages than its budget allows: they are read more slowly");
            }
        }
        self.closed = until.is_some();
        until
    }

    fn tick(&mut self) -> Result<(), String> {
        let now = Instant::now();
        if self.deadline.is_some_and(|at| at <= now) {
            let patience_s = STEP_PATIENCE.as_secs();
            return Err(format!(
                "no next step towards being ready in {patience_s} s"
            ));
        }
        if self.enrol_at.is_some_and(|at| at <= now) {
            self.enrol();
        }
        if let Some((_, csr)) = self.sign_later.take_if(|(at, _)| *at <= now) {
            self.sign(csr, now);
        }
        Ok(())
    }

    fn step_taken(&mut self) {
        let signing = self.signing.is_some() || self.sign_later.is_some();
        // Without policy it can't be ready, and that is not its fault.
        let waiting = signing || self.ready || !self.told.has_policy();
        self.deadline = (!waiting).then(|| Instant::now() + STEP_PATIENCE);
    }

    /// Takes one message; what can't be is the fault of a broken or seized worker.
    fn hear(&mut self, message: Option<FromWorker>, fds: Vec<Handed>) -> Result<(), String> {
        self.budget.spend(&self.task.shared.work, Instant::now());
        self.task
            .counters
            .count("nodemesh_supervisor_messages_total", "");
        let Some(message) = message else {
            return Ok(());
        };
        let carries = matches!(
            message,
            FromWorker::Listeners(_) | FromWorker::PrivateKey(_)
        );
        if !carries && !fds.is_empty() {
            return Err("descriptors with a message that has none".to_owned());
        }
        match message {
            FromWorker::Hello(hello) if hello.protocol_version != WORKER_PROTOCOL_VERSION => {
                return Err(format!(
                    "it speaks version {} of the protocol, this supervisor {WORKER_PROTOCOL_VERSION}",
                    hello.protocol_version
                ));
            }
            FromWorker::Hello(hello) => {
                let version = events::word(&hello.version);
                self.task.report.send_modify(|r| r.worker_version = version);
            }
            FromWorker::Listeners(listeners) => {
                let cookie = self.task.record.netns_id.cookie;
                let before = self.task.legacy.sockets();
                self.task
                    .legacy
                    .take_listeners(&listeners.fds, fds, cookie)?;
                if self.ready {
                    self.task.listeners_changed(&before);
                    self.enrol();
                }
            }
            FromWorker::PrivateKey(_) => self.task.legacy.take_key(fds)?,
            FromWorker::CertificateRequest(request) => self.asked_to_sign(request.csr),
            FromWorker::Ready(ready) => {
                self.ready = true;
                self.task.report.send_modify(|report| {
                    report.certificate_not_after_s = Some(ready.certificate_not_after_s);
                });
                self.enrol();
            }
            FromWorker::ResolveDestination(question) => self.asked_destination(&question)?,
            FromWorker::ResolveSource(question) => self.asked_source(&question)?,
            FromWorker::Refusal(refusal) => {
                if self.lines.allow(Instant::now()) {
                    events::log_worker_refusal(&self.task.record.key, &refusal);
                }
            }
            FromWorker::TunnelOpened(tunnel) => {
                if self.lines.allow(Instant::now()) {
                    events::log_tunnel(&self.task.record.key, &tunnel);
                }
            }
            FromWorker::Metrics(metrics) => {
                self.task.counters.update(&metrics.counters);
                if let Some(at) = self.scrapes.iter().position(|(id, _)| *id == metrics.id) {
                    let (_, reply) = self.scrapes.swap_remove(at);
                    let _ = reply.send(self.task.counters.totals());
                }
            }
            FromWorker::Applied(applied) => self.applied(&applied.version),
            FromWorker::Health(health) => self.task.health_told(&health, &mut self.lines),
            FromWorker::Drained(_) => {}
            FromWorker::StartFailed(failed) => {
                self.task.stumbled(&failed.why);
                self.last_words = Some(failed.why);
            }
        }
        self.step_taken();
        Ok(())
    }

    fn scrape(&mut self, reply: oneshot::Sender<Vec<Counter>>) {
        self.scrapes.retain(|(_, waiting)| !waiting.is_closed());
        let id = self.next_scrape;
        self.next_scrape += 1;
        self.scrapes.push((id, reply));
        self.post(ForWorker::MetricsRequest(MetricsRequest { id }));
    }

    /// The worker is ready: steers traffic to it. Doing so again changes nothing.
    fn enrol(&mut self) {
        match self.task.enrol() {
            Ok(()) => {
                self.enrol_at = None;
                self.task.now_enrolled(self.worker.pid);
            }
            Err(why) => {
                self.task.stumbled(&why);
                self.enrol_at = Some(Instant::now() + ENROL_RETRY);
            }
        }
    }
}
