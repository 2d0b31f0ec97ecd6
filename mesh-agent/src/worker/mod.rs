//! The unprivileged half: one pod, one identity, its listeners and tunnels.
//!
//! When [`run`] is called the process is in its sandbox already: no path is opened here, no
//! program started, no environment read. One thread; every connection is a task of its own,
//! and a panic in it ends that connection only.

mod admission;
mod balance;
mod certificate;
mod changes;
mod chunk;
mod connect;
mod context;
mod destination;
mod discovery;
mod fault;
mod flow;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod heap;
mod inbound;
mod key;
mod listeners;
mod memory;
mod metrics;
mod original_port;
mod outbound;
mod outbox;
mod peer_settings;
mod plaintext;
mod policy;
mod pool;
mod proofs;
mod rarely;
mod relay;
mod relay_local;
mod report;
mod route;
mod socket;
mod sources;
mod standing;
mod tls;
mod tunnel;
mod turn;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::worker::{
    Changes, FdKind, Hello, Metrics as MetricsMessage, PrivateKey, Ready, Start, StartFailed,
    ToSupervisor, ToWorker, to_supervisor, to_worker,
};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::channel::WorkerChannel;
use crate::clock::ClockWatch;
use certificate::Certifier;
use changes::{Batch, send_applied};
use context::{Context, Phase};
use health::Health;
use key::PodKey;
use listeners::Listeners;
use outbox::Outbox;
use pool::Pool;
use socket::{CaptureHooks, KernelHooks};

/// How long the last words to the supervisor may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long flows have to say that they are cut when the time to drain is over.
const LAST_FLOWS: Duration = Duration::from_secs(1);

/// Serves one pod until the supervisor drains or replaces this worker.
///
/// `channel` is the worker's end of [`crate::channel`]. It is taken over; everything else the
/// worker needs comes through it.
///
/// # Errors
/// When the supervisor speaks another version of the protocol, when a listener or the key
/// can't be made, or when the channel breaks.
pub fn run(channel: OwnedFd) -> anyhow::Result<()> {
    run_with(channel, Box::new(KernelHooks))
}

/// [`run`] with the capture hooks of the caller's choice.
fn run_with(channel: OwnedFd, hooks: Box<dyn CaptureHooks>) -> anyhow::Result<()> {
    heap::keep();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(turn::wait_begins)
        .on_thread_unpark(turn::wait_ends)
        .build()
        .context("starting the worker's runtime failed")?;
    LocalSet::new().block_on(&runtime, serve(channel, hooks))
}

async fn serve(channel: OwnedFd, hooks: Box<dyn CaptureHooks>) -> anyhow::Result<()> {
    let channel = WorkerChannel::new(channel).context("taking over the channel failed")?;
    let channel = Rc::new(channel);
    let (outbox, queue) = Outbox::new();
    spawn_local(outbox::deliver(channel.clone(), queue));
    outbox.send(hello(), Vec::new()).await;
    let Some((start, fds)) = receive_start(&channel, &outbox).await? else {
        return Ok(());
    };
    match Worker::start(&start, fds, channel.clone(), outbox, hooks).await {
        Ok(worker) => worker.run().await,
        Err(error) => {
            let why = format!("{error:#}");
            farewell(
                &channel,
                to_supervisor::Message::StartFailed(StartFailed { why }),
            )
            .await;
            Err(error)
        }
    }
}

fn hello() -> to_supervisor::Message {
    to_supervisor::Message::Hello(Hello {
        protocol_version: WORKER_PROTOCOL_VERSION,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Waits for `Start`; `None` when the supervisor went away or changed its mind.
async fn receive_start(
    channel: &WorkerChannel,
    outbox: &Outbox,
) -> anyhow::Result<Option<(Start, Vec<OwnedFd>)>> {
    loop {
        match receive(channel).await? {
            Some((to_worker::Message::Start(start), fds)) => return Ok(Some((start, fds))),
            Some((to_worker::Message::Resync(_), _)) => outbox.send(hello(), Vec::new()).await,
            Some((to_worker::Message::Drain(_) | to_worker::Message::Replace(_), _)) | None => {
                return Ok(None);
            }
            Some(_) => tracing::warn!("a message before Start was ignored"),
        }
    }
}

/// The next message that is one.
async fn receive(
    channel: &WorkerChannel,
) -> anyhow::Result<Option<(to_worker::Message, Vec<OwnedFd>)>> {
    loop {
        match channel.recv().await {
            Ok(Some((
                ToWorker {
                    message: Some(message),
                },
                fds,
            ))) => {
                return Ok(Some((message, fds)));
            }
            Ok(Some(_)) => tracing::warn!("an empty or unknown message was ignored"),
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "a packet that is no message was ignored");
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error).context("receiving from the supervisor failed"),
        }
    }
}

/// Has all that is judged by the wall clock judged anew whenever that is set. Where it can't be heard
/// of, tunnels and the certificate look at the clock now and then.
async fn follow_clock(context: Rc<Context>) {
    let Err(error) = hear_of_clock(&context).await;
    tracing::warn!(%error, "a clock that is set is seen a minute later");
}

async fn hear_of_clock(context: &Context) -> io::Result<Infallible> {
    let mut clock = ClockWatch::start()?;
    loop {
        clock.set().await?;
        context.clock_was_set();
    }
}

async fn farewell(channel: &WorkerChannel, message: to_supervisor::Message) {
    let message = ToSupervisor {
        message: Some(message),
    };
    // Nobody may be listening; the worker ends either way.
    let _unheard = timeout(FAREWELL, channel.send(&message, &[])).await;
    // A socket that is closed with packets unread gives its peer ECONNRESET before the peer
    // has read what was sent to it (unix(7)).
    while let Some(Ok(Some(_))) = channel.recv().now_or_never() {}
}

/// One running worker.
struct Worker {
    channel: Rc<WorkerChannel>,
    context: Rc<Context>,
    pool: Rc<Pool>,
    health: Rc<Health>,
    listeners: Rc<Listeners>,
    certifier: Certifier,
    batch: Batch,
    accepting: bool,
}

impl Worker {
    async fn start(
        start: &Start,
        fds: Vec<OwnedFd>,
        channel: Rc<WorkerChannel>,
        outbox: Outbox,
        hooks: Box<dyn CaptureHooks>,
    ) -> anyhow::Result<Self> {
        if start.fds.len() != fds.len() {
            bail!(
                "the start message names {} descriptors and brings {}",
                start.fds.len(),
                fds.len()
            );
        }
        let mut handed_over: BTreeMap<i32, OwnedFd> = start.fds.iter().copied().zip(fds).collect();
        let key = handed_over.remove(&(FdKind::PrivateKey as i32));
        let memory_used = handed_over.remove(&(FdKind::MemoryUsed as i32));
        let context = Context::new(start, memory_used, outbox, hooks)?;
        let listeners = Rc::new(Listeners::new(handed_over)?);
        let (message, fds) = listeners
            .hand_over(&listeners.kinds())
            .context("duplicating the listeners failed")?;
        context.outbox.send(message, fds).await;
        let taken = key.and_then(|fd| {
            PodKey::take(fd)
                .inspect_err(|error| tracing::warn!(%error, "making a new key"))
                .ok()
        });
        let taken_over = taken.is_some();
        let key = taken.map_or_else(PodKey::generate, Ok)?;
        if !taken_over {
            send_key(&context, &key).await?;
        }
        Ok(Self {
            channel,
            pool: Pool::new(context.clone()),
            health: Health::new(context.clone()),
            listeners,
            certifier: Certifier::new(context.clone(), key, taken_over),
            context,
            batch: Batch::default(),
            accepting: false,
        })
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let channel = self.channel.clone();
        let context = self.context.clone();
        spawn_local(async move { context.admission.memory.watch(&context.metrics).await });
        spawn_local(heap::give_back_at_rest());
        spawn_local(follow_clock(self.context.clone()));
        loop {
            let message = tokio::select! {
                message = receive(&channel) => message?,
                () = self.certifier.due() => {
                    self.certifier.request();
                    continue;
                }
            };
            use to_worker::Message as M;
            match message {
                None => return Ok(()),
                Some((M::Drain(drain), _)) => return self.drain(drain.deadline_ms).await,
                Some((M::Replace(replace), _)) => return self.drain(replace.deadline_ms).await,
                Some((message, _)) => self.handle(message)?,
            }
        }
    }

    fn handle(&mut self, message: to_worker::Message) -> anyhow::Result<()> {
        use to_worker::Message as M;
        match message {
            M::Certificate(certificate) => {
                if self.certifier.certificate(certificate.chain) {
                    self.credentials_changed();
                }
            }
            M::TrustBundle(bundle) => {
                if self.certifier.trust_bundle(bundle) {
                    self.credentials_changed();
                }
            }
            M::CertificateRefused(refused) => self.certifier.refused(&refused.why),
            M::Changes(changes) => self.changes(changes),
            M::MetricsRequest(request) => send_metrics(&self.context, request.id),
            M::Resync(_) => self.resync()?,
            M::Limits(limits) => self.context.admission.set(&limits),
            M::Start(_) => tracing::warn!("a second Start was ignored"),
            M::Drain(_) | M::Replace(_) => {}
        }
        Ok(())
    }

    fn changes(&mut self, changes: Changes) {
        let first = self.context.policy.in_force().is_none();
        if self.batch.receive(changes, &self.context) {
            let context = self.context.clone();
            if let Some(policy) = context.policy.in_force() {
                self.health.set_checks(policy.checks());
            }
            // Of certificate and policy the one that comes second makes the worker ready.
            let ready = first && context.credentials().is_some();
            spawn_local(async move {
                send_applied(&context).await;
                if ready {
                    send_ready(&context).await;
                }
            });
        }
    }

    fn credentials_changed(&mut self) {
        self.pool.retire_all();
        let context = self.context.clone();
        if context.policy.in_force().is_some() {
            spawn_local(async move { send_ready(&context).await });
        }
        if !self.accepting {
            self.accepting = true;
            self.accept();
        }
    }

    fn accept(&self) {
        for kind in self.listeners.kinds() {
            let listeners = self.listeners.clone();
            let context = self.context.clone();
            let pool = self.pool.clone();
            match kind {
                FdKind::OutboundV4 | FdKind::OutboundV6 => {
                    let serve = {
                        let context = context.clone();
                        move |stream, peer| {
                            outbound::serve(context.clone(), pool.clone(), stream, peer)
                        }
                    };
                    spawn_local(listeners.accept(context, kind, serve));
                }
                FdKind::PlaintextV4 | FdKind::PlaintextV6 => {
                    let serve = {
                        let context = context.clone();
                        move |stream, peer| original_port::serve(context.clone(), stream, peer)
                    };
                    spawn_local(listeners.accept(context, kind, serve));
                }
                _ => {
                    let serve = {
                        let context = context.clone();
                        move |stream, peer| inbound::serve(context.clone(), stream, peer, None)
                    };
                    spawn_local(listeners.accept(context, kind, serve));
                }
            }
        }
    }

    /// A new supervisor knows nothing: everything again, in the order of a start.
    fn resync(&mut self) -> anyhow::Result<()> {
        // Half a batch of the one before has no other half.
        self.batch = Batch::default();
        self.certifier.begin_anew();
        let (listeners, fds) = self
            .listeners
            .hand_over(&self.listeners.kinds())
            .context("duplicating the listeners failed")?;
        let key = self.certifier.key().fd().try_clone_to_owned();
        let key = key.context("duplicating the key's descriptor failed")?;
        let (context, health) = (self.context.clone(), self.health.clone());
        // Not awaited here: while it waits for room in the queue, messages must be received.
        spawn_local(async move {
            let outbox = &context.outbox;
            outbox.send(hello(), Vec::new()).await;
            outbox.send(listeners, fds).await;
            outbox
                .send(to_supervisor::Message::PrivateKey(PrivateKey {}), vec![key])
                .await;
            send_applied(&context).await;
            send_ready(&context).await;
            ask_again(context).await;
            health.tell_again();
        });
        Ok(())
    }

    /// Takes nothing new, finishes what there is, at the latest at the deadline. What changes
    /// meanwhile still holds for the flows that are open.
    async fn drain(mut self, deadline_ms: u32) -> anyhow::Result<()> {
        self.context.phase.send_replace(Phase::Draining);
        self.listeners.close();
        self.pool.retire_all();
        let (context, channel) = (self.context.clone(), self.channel.clone());
        let idle = context.metrics.idle();
        let deadline = tokio::time::sleep(Duration::from_millis(deadline_ms.into()));
        tokio::pin!(idle, deadline);
        let mut heard = true;
        loop {
            let message = tokio::select! {
                () = &mut idle => break,
                () = &mut deadline => {
                    context.cut_all();
                    // Each flow says of itself that it is cut. What waits for something else ends
                    // with the process.
                    let _left = timeout(LAST_FLOWS, &mut idle).await;
                    break;
                }
                message = receive(&channel), if heard => message,
            };
            use to_worker::Message as M;
            match message {
                Ok(Some((M::Changes(changes), _))) => self.changes(changes),
                Ok(Some((M::MetricsRequest(request), _))) => send_metrics(&context, request.id),
                // What is not trusted any more ends its tunnels also here.
                Ok(Some((M::TrustBundle(bundle), _))) => drop(self.certifier.trust_bundle(bundle)),
                Ok(Some((M::Limits(limits), _))) => context.admission.set(&limits),
                Ok(Some((M::Resync(_), _))) => {
                    self.batch = Batch::default();
                    self.certifier.begin_anew();
                    spawn_local(ask_again(context.clone()));
                }
                Ok(Some(_)) => {}
                // The supervisor has gone; the flows have not.
                Ok(None) | Err(_) => heard = false,
            }
        }
        // What it has counted since it was asked last would be lost with it.
        send_metrics(&context, 0);
        self.outbox_is_empty().await;
        farewell(
            &channel,
            to_supervisor::Message::Drained(mesh_api::worker::Drained {}),
        )
        .await;
        Ok(())
    }

    /// Waits until everything that was queued has been sent, a moment at most.
    async fn outbox_is_empty(&self) {
        let _slow = timeout(FAREWELL, self.context.outbox.delivered()).await;
    }
}

/// A new supervisor follows for this worker what it still wants to know.
async fn ask_again(context: Rc<Context>) {
    context.discovery.ask_again().await;
    context.sources.ask_again().await;
}

async fn send_key(context: &Context, key: &PodKey) -> anyhow::Result<()> {
    let fd = key.fd().try_clone_to_owned();
    let fd = fd.context("duplicating the key's descriptor failed")?;
    context
        .outbox
        .send(to_supervisor::Message::PrivateKey(PrivateKey {}), vec![fd])
        .await;
    Ok(())
}

fn send_metrics(context: &Context, id: u64) {
    let metrics = MetricsMessage {
        id,
        counters: context.metrics.snapshot(),
    };
    let outbox = &context.outbox;
    if !outbox.try_send(to_supervisor::Message::Metrics(metrics)) {
        tracing::warn!("the queue to the supervisor is full; metrics were not sent");
    }
}

/// Says that traffic may be steered here, where that is so: without a certificate or a policy
/// every flow would be refused.
async fn send_ready(context: &Context) {
    if context.policy.in_force().is_none() {
        return;
    }
    if let Some(credentials) = context.credentials() {
        let (_, certificate_not_after_s) = credentials.validity_s();
        let ready = Ready {
            certificate_not_after_s,
        };
        context
            .outbox
            .send(to_supervisor::Message::Ready(ready), Vec::new())
            .await;
    }
}
