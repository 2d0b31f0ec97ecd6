//! One running worker, from its start or adoption to its end: the supervisor's side of the
//! channel.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::worker::to_supervisor::Message as FromWorker;
use mesh_api::worker::to_worker::Message as ForWorker;
use mesh_api::worker::{
    Certificate, CertificateRefused, Change, Changes, Counter, Drain, MetricsRequest, Resync,
    Start, ToWorker, TrustBundle, change,
};
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::events;
use super::join::now_s;
use super::lookups::{Budget, Lookups};
use super::signing::{Signing, SigningEvent, next_signing};
use super::workers::{Command, PodTask};
use crate::channel::SupervisorChannel;
use crate::sandbox::{Exit, Newborn};

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
    /// The supervisor is going away; the worker stays.
    Detached,
}

fn of(change: change::Change) -> Change {
    Change {
        change: Some(change),
    }
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
    lookups: Lookups,
    budget: Budget,
    lines: events::LineBudget,
    changes: watch::Receiver<u64>,
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
            changes: task.shared.discovery.changes(),
            task,
            worker,
            channel,
            death,
            outbox: Outbox::new(),
            lookups: Lookups::default(),
            budget: Budget::new(now),
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

    /// What takes effect in the worker at once.
    fn tell(&mut self, changes: Vec<Change>) {
        let changes = Changes {
            changes,
            more: false,
        };
        self.post(ForWorker::Changes(changes));
    }

    /// First words to a worker that was just started.
    pub(super) fn greet(&mut self) -> io::Result<()> {
        let (fds, duplicates) = self.task.legacy.hand_over()?;
        let start = Start {
            protocol_version: WORKER_PROTOCOL_VERSION,
            instance: self.task.shared.config.instance.clone(),
            node: self.task.shared.config.node.clone(),
            pod: Some(self.task.introduction()),
            limits: None,
            fds,
        };
        let message = Some(ForWorker::Start(start));
        self.outbox.push_back((ToWorker { message }, duplicates));
        self.post_trust();
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
    }

    fn post_trust(&mut self) {
        let roots = self.task.shared.config.trust_bundle.iter();
        let roots = roots.map(|root| root.to_vec()).collect();
        self.post(ForWorker::TrustBundle(TrustBundle { roots }));
    }

    /// Serves the worker until it ends or the pod leaves.
    pub(super) async fn run(&mut self) -> SessionEnd {
        loop {
            let backlog = self.outbox.len() >= OUTBOX_LIMIT;
            let closed_until = self.budget.closed_until();
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
                received = self.channel.recv(), if !backlog && closed_until.is_none() => {
                    match received {
                        Ok(Some((message, fds))) => match message.message {
                            Some(message) => self.hear(message, fds),
                            None => Ok(()),
                        },
                        Ok(None) => return self.bury(END_PATIENCE).await,
                        Err(e) => Err(format!("unreadable: {e}")),
                    }
                }
                _ = self.death.readable() => return self.bury(END_PATIENCE).await,
                sent = send_first(&self.channel, &self.outbox) => match sent {
                    Ok(()) => { self.outbox.pop_front(); Ok(()) }
                    Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                        self.outbox.pop_front();
                        tracing::error!(pod = %self.task.record.key, error = %e, "message to the worker left out");
                        Ok(())
                    }
                    Err(_) => return self.bury(END_PATIENCE).await,
                },
                event = next_signing(&mut self.signing) => { self.signing_event(event); Ok(()) }
                Ok(()) = self.changes.changed(), if !backlog => { self.discovery_changed(); Ok(()) }
                () = until(wake) => self.tick(),
            };
            if let Err(why) = fault {
                tracing::error!(pod = %self.task.record.key, pid = self.worker.pid, why, "the worker broke the protocol or is stuck: killing it");
                self.last_words = Some(why);
                return self.bury(Duration::ZERO).await;
            }
        }
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
        if self.budget.closed_until().is_some_and(|at| at <= now) {
            self.budget.refill(now);
        }
        Ok(())
    }

    fn step_taken(&mut self) {
        let waiting = self.signing.is_some() || self.sign_later.is_some() || self.ready;
        self.deadline = (!waiting).then(|| Instant::now() + STEP_PATIENCE);
    }

    /// Takes one message; what can't be is the fault of a broken or seized worker.
    fn hear(&mut self, message: FromWorker, fds: Vec<OwnedFd>) -> Result<(), String> {
        self.budget.spend(Instant::now());
        match message {
            FromWorker::Hello(hello) if hello.protocol_version != WORKER_PROTOCOL_VERSION => {
                return Err(format!(
                    "it speaks version {} of the protocol, this supervisor {WORKER_PROTOCOL_VERSION}",
                    hello.protocol_version
                ));
            }
            FromWorker::Hello(_) => {}
            FromWorker::Listeners(listeners) => {
                let cookie = self.task.record.netns_id.cookie;
                self.task
                    .legacy
                    .take_listeners(&listeners.fds, fds, cookie)?;
                if self.ready {
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
            FromWorker::ResolveDestination(question) => {
                let discovery = &self.task.shared.discovery;
                if let Some(answer) = self.lookups.ask(discovery, &question)? {
                    self.tell(vec![of(change::Change::Destination(answer))]);
                }
            }
            FromWorker::ResolveSource(question) => {
                let address = mesh_api::convert::address_from_bytes(&question.address, "address");
                let address = address.map_err(|e| e.to_string())?;
                if let Some(answer) = self.task.shared.discovery.source(address) {
                    self.tell(vec![of(change::Change::Source(answer))]);
                }
            }
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
            FromWorker::Drained(_) | FromWorker::Applied(_) | FromWorker::Health(_) => {}
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

    fn discovery_changed(&mut self) {
        let refreshed = self.lookups.refresh(&self.task.shared.discovery);
        let changes = refreshed.into_iter().map(change::Change::Destination);
        let changes: Vec<_> = changes.map(of).collect();
        if !changes.is_empty() {
            self.tell(changes);
        }
    }

    /// One request after the other, and not too many: control serves every node.
    fn asked_to_sign(&mut self, csr: Vec<u8>) {
        let now = Instant::now();
        let at = self.signed_at.map_or(now, |last| last + SIGNING_INTERVAL);
        if at <= now {
            self.sign(csr, now);
        } else {
            self.sign_later = Some((at, csr));
        }
    }

    fn sign(&mut self, csr: Vec<u8>, now: Instant) {
        self.signed_at = Some(now);
        self.sign_later = None;
        self.signing = Some(Signing::start(self.task, csr));
    }

    fn signing_event(&mut self, event: SigningEvent) {
        match event {
            SigningEvent::Signed(svid) => {
                self.signing = None;
                self.post(ForWorker::Certificate(Certificate {
                    chain: svid.chain.clone(),
                }));
                self.task.keep_certificate(svid);
                self.step_taken();
            }
            SigningEvent::Lost(why) => {
                self.signing = None;
                self.post(ForWorker::CertificateRefused(CertificateRefused { why }));
            }
            SigningEvent::Refused(why) => {
                self.post(ForWorker::CertificateRefused(CertificateRefused { why }));
            }
        }
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

    /// Asks the worker to finish and sees to it that it is gone.
    pub(super) async fn finish(&mut self, drain: Duration) {
        if !drain.is_zero() {
            let deadline_ms = u32::try_from(drain.as_millis()).unwrap_or(u32::MAX);
            self.post(ForWorker::Drain(Drain { deadline_ms }));
            let flush_and_wait = async {
                while !self.outbox.is_empty() {
                    tokio::select! {
                        sent = send_first(&self.channel, &self.outbox) => match sent {
                            Ok(()) => drop(self.outbox.pop_front()),
                            Err(_) => break,
                        },
                        _ = self.death.readable() => return,
                    }
                }
                let _ = self.death.readable().await;
            };
            let _ = timeout(drain + END_PATIENCE, flush_and_wait).await;
        }
        self.bury(Duration::ZERO).await;
    }

    /// Waits for the worker's end, and hastens it after `patience`.
    async fn bury(&mut self, patience: Duration) -> SessionEnd {
        if timeout(patience, self.death.readable()).await.is_err() {
            // ESRCH: it has ended meanwhile.
            let _ = self.worker.signal(Signal::SIGKILL);
            if timeout(STEP_PATIENCE, self.death.readable()).await.is_err() {
                tracing::error!(pod = %self.task.record.key, pid = self.worker.pid, "the worker doesn't end on SIGKILL (a stuck device or debugger?)");
            }
        }
        self.listen_to_last_words();
        let exit = match self.worker.exited() {
            Ok(Some(Exit::Code(code))) => format!("exit code {code}"),
            Ok(Some(Exit::Signal(signal))) => format!("signal {signal}"),
            Ok(Some(Exit::Unknown)) => "end unknown, it was adopted".to_owned(),
            Ok(None) => "still there".to_owned(),
            Err(e) => format!("end unknown: {e}"),
        };
        SessionEnd::Died(match self.last_words.take() {
            Some(words) => format!("{words} ({exit})"),
            None => exit,
        })
    }

    /// What a dead worker had sent: its reason, most of all.
    fn listen_to_last_words(&mut self) {
        use futures_util::FutureExt as _;
        for _ in 0..OUTBOX_LIMIT {
            let Some(Ok(Some((message, _)))) = self.channel.recv().now_or_never() else {
                return;
            };
            if let Some(FromWorker::StartFailed(failed)) = message.message {
                self.last_words = Some(failed.why);
            }
        }
    }
}
