//! What a worker says, and what has happened with it.

use std::io;
use std::time::Duration;

use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::worker::to_supervisor::Message as FromWorker;
use mesh_api::worker::{Health, Hello, Metrics};
use tokio::time::Instant;

use super::{ASK_DRAINING, END_PATIENCE, ENROL_RETRY, Event, STEP_PATIENCE, Session};
use crate::handed::Handed;
use crate::supervisor::events;
use crate::supervisor::pods::Part;

impl Session<'_> {
    /// Takes in what has happened; how the worker has ended, if it has.
    pub(in crate::supervisor) async fn happened(&mut self, event: Event) -> Option<String> {
        let fault = match event {
            Event::Received(received) => match *received {
                Ok(Some((message, fds))) => self.hear(message.message, fds),
                Ok(None) => return Some(self.link.bury(END_PATIENCE).await),
                Err(e) => Err(format!("unreadable: {e}")),
            },
            Event::Ended => return Some(self.link.bury(END_PATIENCE).await),
            Event::Sent(Ok(())) => {
                self.sent();
                Ok(())
            }
            Event::Sent(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => {
                self.sent();
                tracing::error!(pod = %self.task.record.key, error = %e, "message to the worker left out");
                Ok(())
            }
            Event::Sent(Err(_)) => return Some(self.link.bury(END_PATIENCE).await),
            Event::Signing(event) => {
                self.signing_event(event);
                Ok(())
            }
            Event::HeldBack => {
                self.held_back();
                Ok(())
            }
            Event::DiscoveryChanged => {
                self.discovery_changed();
                Ok(())
            }
            Event::TrustChanged => {
                self.post_trust();
                Ok(())
            }
            Event::Tick => self.tick(),
        };
        let why = fault.err()?;
        tracing::error!(pod = %self.task.record.key, pid = self.link.worker.pid, why, "the worker broke the protocol or is stuck: killing it");
        self.link.last_words = Some(why);
        Some(self.link.bury(Duration::ZERO).await)
    }

    fn held_back(&mut self) {
        self.task.held_back("messages");
        if self.link.lines.allow(Instant::now()) {
            tracing::warn!(pod = %self.task.record.key, "the worker sends more messages than its budget allows: they are read more slowly");
        }
    }

    fn tick(&mut self) -> Result<(), String> {
        let now = Instant::now();
        if self.link.deadline.is_some_and(|at| at <= now) {
            if self.link.is_draining() {
                return Err("its time to drain is over".to_owned());
            }
            let patience_s = STEP_PATIENCE.as_secs();
            return Err(format!(
                "no next step towards being ready in {patience_s} s"
            ));
        }
        if self.link.enrol_at.is_some_and(|at| at <= now) {
            self.enrol();
        }
        if self.link.ask_at.is_some_and(|at| at <= now) {
            self.link.ask_at = Some(now + ASK_DRAINING);
            self.link.scrape(None);
        }
        if let Some((_, csr)) = self.link.sign_later.take_if(|(at, _)| *at <= now) {
            self.sign(csr, now);
        }
        Ok(())
    }

    pub(super) fn step_taken(&mut self) {
        if self.link.is_draining() {
            return;
        }
        let link = &mut *self.link;
        let signing = link.signing.is_some() || link.sign_later.is_some();
        // Without policy it can't be ready, and that is not its fault.
        let waiting = signing || link.ready || link.foreign || !link.told.has_policy();
        link.deadline = (!waiting).then(|| Instant::now() + STEP_PATIENCE);
    }

    /// Takes one message; what can't be is the fault of a broken or seized worker.
    fn hear(&mut self, message: Option<FromWorker>, fds: Vec<Handed>) -> Result<(), String> {
        self.link
            .budget
            .spend(&self.task.shared.work, Instant::now());
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
            FromWorker::Hello(hello) => self.greeted(&hello)?,
            FromWorker::Listeners(listeners) => self.listeners(&listeners.fds, fds)?,
            FromWorker::PrivateKey(_) => match self.link.part {
                Part::Serving => self.task.legacy.take_key(fds)?,
                Part::Next => self.link.legacy.take_key(fds)?,
                Part::Draining(_) => {}
            },
            FromWorker::Ready(ready) => {
                self.link.ready = true;
                self.link.certificate_not_after_s = Some(ready.certificate_not_after_s);
                if self.link.part == Part::Serving {
                    self.now_ready();
                }
            }
            // The worker after it has asked, or will.
            FromWorker::CertificateRequest(_) if self.link.is_draining() => {}
            FromWorker::CertificateRequest(request) => self.asked_to_sign(request.csr),
            FromWorker::ResolveDestination(question) => self.asked_destination(&question)?,
            FromWorker::ResolveSource(question) => self.asked_source(&question)?,
            FromWorker::Refusal(refusal) => {
                if self.link.lines.allow(Instant::now()) {
                    events::log_worker_refusal(&self.task.record.key, &refusal);
                }
            }
            FromWorker::TunnelOpened(tunnel) => {
                if self.link.lines.allow(Instant::now()) {
                    events::log_tunnel(&self.task.record.key, &tunnel);
                }
            }
            FromWorker::Metrics(metrics) => self.counted(&metrics),
            FromWorker::Applied(applied) => self.applied(&applied.version),
            FromWorker::Health(health) => self.health(&health),
            FromWorker::Drained(_) => {}
            FromWorker::StartFailed(failed) => {
                if self.link.part == Part::Serving {
                    self.task.stumbled(&failed.why);
                }
                self.link.last_words = Some(failed.why);
            }
        }
        self.step_taken();
        Ok(())
    }

    /// A worker of an earlier supervisor may speak another version. It is left to serve what it
    /// knows until another has taken over.
    fn greeted(&mut self, hello: &Hello) -> Result<(), String> {
        let version = hello.protocol_version;
        if version != WORKER_PROTOCOL_VERSION && !self.link.adopted {
            return Err(format!(
                "it speaks version {version} of the protocol, this supervisor {WORKER_PROTOCOL_VERSION}"
            ));
        }
        if version != WORKER_PROTOCOL_VERSION && !self.link.foreign {
            tracing::warn!(pod = %self.task.record.key, pid = self.link.worker.pid, version, "the worker speaks another version of the protocol: it goes on with what it knows until another has taken over, which is next");
            self.link.foreign = true;
            self.link.outbox.clear();
        }
        self.link.version = events::word(&hello.version);
        if self.link.part == Part::Serving {
            let version = self.link.version.clone();
            self.task.report.send_modify(|r| r.worker_version = version);
        }
        Ok(())
    }

    fn listeners(&mut self, kinds: &[i32], fds: Vec<Handed>) -> Result<(), String> {
        let cookie = self.task.record.netns_id.cookie;
        match self.link.part {
            Part::Serving => {
                let before = self.task.legacy.sockets();
                self.task.legacy.take_listeners(kinds, fds, cookie)?;
                if self.link.ready {
                    self.task.listeners_changed(&before);
                    self.enrol();
                }
            }
            Part::Next => self.link.legacy.take_listeners(kinds, fds, cookie)?,
            // It has let go of them, or is about to.
            Part::Draining(_) => {}
        }
        Ok(())
    }

    /// The worker that serves is ready: also after a renewal of its certificate.
    fn now_ready(&mut self) {
        let not_after = self.link.certificate_not_after_s;
        self.task.report.send_modify(|report| {
            report.certificate_not_after_s = not_after;
        });
        self.enrol();
    }

    /// What is said of the pod's worker is said of this one from here on.
    pub(in crate::supervisor) fn is_in_charge(&mut self) {
        let version = self.link.version.clone();
        self.task.report.send_modify(|r| r.worker_version = version);
        if let Some(health) = self.link.health.take() {
            self.task.health_told(&health, &mut self.link.lines);
        }
        self.now_ready();
        self.report_policy();
    }

    fn counted(&mut self, metrics: &Metrics) {
        let pid = self.link.worker.pid;
        self.task.counters.update(pid, &metrics.counters);
        let scrapes = &mut self.link.scrapes;
        if let Some(at) = scrapes.iter().position(|(id, _)| *id == metrics.id) {
            let (_, reply) = scrapes.swap_remove(at);
            let _ = reply.send(self.task.counters.totals());
        }
    }

    /// One word on the pod's health at a time: that of the worker that serves.
    fn health(&mut self, health: &Health) {
        match self.link.part {
            Part::Serving => self.task.health_told(health, &mut self.link.lines),
            Part::Next => self.link.health = Some(health.clone()),
            Part::Draining(_) => {}
        }
    }

    /// The worker is ready: steers traffic to it. Doing so again changes nothing.
    fn enrol(&mut self) {
        match self.task.enrol() {
            Ok(()) => {
                self.link.enrol_at = None;
                self.task.now_enrolled(self.link.worker.pid);
            }
            Err(why) => {
                self.task.stumbled(&why);
                self.link.enrol_at = Some(Instant::now() + ENROL_RETRY);
            }
        }
    }
}
