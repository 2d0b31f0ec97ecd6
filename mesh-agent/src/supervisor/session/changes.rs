//! What the worker and the kernel programs are told of discovery: the pod's policy, and the
//! destinations and sources that the worker has asked for.

use std::sync::Arc;

use mesh_api::worker::change::Change;
use mesh_api::worker::to_worker::Message as ForWorker;
use mesh_api::worker::{Limits, ResolveDestination, ResolveSource};
use tokio::sync::watch;

use super::Session;
use crate::supervisor::discovery::Discovery;
use crate::supervisor::lookups::Lookups;
use crate::supervisor::packets::batch;
use crate::supervisor::pods::Part;

/// What the worker knows.
pub(super) struct Told {
    pub(super) changes: watch::Receiver<u64>,
    lookups: Lookups,
    /// Which state of the pod's rules it was told last.
    generation: Option<u64>,
    /// Version that the policy sent last was made from; `None` before there is one.
    policy: Option<String>,
    /// The worker has said that it is in force.
    applied: bool,
    /// Limits that the worker was sent last; of an adopted one they are not known.
    pub(super) limits: Option<Limits>,
    /// Version whose policy equals the one sent last, and whose answers the worker has.
    current: Arc<str>,
    /// The policy is another than the one sent last.
    policy_due: bool,
    /// Discovery has gone on while changes waited for the worker.
    due: bool,
    /// Messages with changes that wait for the worker.
    waiting: usize,
}

impl Told {
    pub(super) fn new(discovery: &Discovery) -> Self {
        Self {
            changes: discovery.changes(),
            lookups: Lookups::new(discovery.asked().clone()),
            generation: None,
            policy: None,
            applied: false,
            limits: None,
            current: Arc::default(),
            policy_due: true,
            due: false,
            waiting: 0,
        }
    }

    pub(super) fn has_policy(&self) -> bool {
        self.policy.is_some()
    }
}

impl Session<'_> {
    /// The first message that waited is with the worker.
    pub(super) fn sent(&mut self) {
        let sent = self.link.outbox.pop_front();
        let message = sent.and_then(|(message, _)| message.message);
        if matches!(message, Some(ForWorker::Changes(_))) {
            self.link.told.waiting -= 1;
            if self.link.told.due {
                self.tell_worker();
            }
        }
    }

    /// Queues what takes effect in the worker at once.
    fn tell(&mut self, changes: impl IntoIterator<Item = Change>) {
        let batch = batch(changes);
        for what in batch.left_out {
            let pod = &self.task.record.key;
            tracing::error!(%pod, what, "too large to be told to the worker, left out");
        }
        for message in batch.messages {
            self.link.told.waiting += 1;
            self.link.post(ForWorker::Changes(message));
        }
    }

    /// Takes in what discovery says now.
    pub(super) fn discovery_changed(&mut self) {
        let discovery = self.task.shared.discovery.clone();
        if let Some(view) = discovery.known() {
            self.task.follow_discovery(&view);
            drop(view);
            // The same for all of the pod's workers: whoever takes it in first.
            let generation = Some(self.task.rules.generation);
            self.link.told.policy_due |= self.link.told.generation != generation;
            self.link.told.generation = generation;
            self.limits_changed();
            self.tell_worker();
        }
    }

    /// Tells the worker its limits if they are others.
    pub(in crate::supervisor) fn limits_changed(&mut self) {
        let limits = self.task.limits();
        if self.link.told.limits.replace(limits) != Some(limits) {
            self.link.post(ForWorker::Limits(limits));
        }
    }

    /// Tells the worker what is news to it, once it has taken what was told before: one that is
    /// slow gets the latest, not every state in between.
    fn tell_worker(&mut self) {
        self.link.told.due = self.link.told.waiting > 0;
        let discovery = self.task.shared.discovery.clone();
        let Some(view) = discovery.known().filter(|_| !self.link.told.due) else {
            return;
        };
        let policy = self
            .link
            .told
            .policy_due
            .then(|| self.task.rules.message(&view.version));
        let policy = policy.flatten();
        if policy.is_some() {
            self.link.told.policy_due = false;
            self.link.told.policy = Some(view.version.to_string());
            self.link.told.applied = false;
        }
        self.link.told.current = view.version.clone();
        let answers = self.link.told.lookups.refresh(&view);
        drop(view);
        self.tell(policy.map(Change::Policy).into_iter().chain(answers));
        self.report_policy();
    }

    pub(super) fn asked_destination(
        &mut self,
        question: &ResolveDestination,
    ) -> Result<(), String> {
        let discovery = self.task.shared.discovery.clone();
        let view = discovery.known();
        let answer = self
            .link
            .told
            .lookups
            .destination(view.as_deref(), question)?;
        self.tell(answer);
        Ok(())
    }

    pub(super) fn asked_source(&mut self, question: &ResolveSource) -> Result<(), String> {
        let discovery = self.task.shared.discovery.clone();
        let view = discovery.known();
        let answer = self.link.told.lookups.source(view.as_deref(), question)?;
        self.tell(answer);
        Ok(())
    }

    /// The worker has a policy in force.
    pub(super) fn applied(&mut self, version: &str) {
        if self.link.told.policy.as_deref() == Some(version) {
            self.link.told.applied = true;
            self.report_policy();
        }
    }

    pub(in crate::supervisor) fn report_policy(&self) {
        if self.link.part != Part::Serving {
            return;
        }
        let audit = self.task.rules.audit();
        let in_force = self.link.told.applied.then_some(&*self.link.told.current);
        self.task.report.send_if_modified(|report| {
            let level = audit.map(Into::into);
            let news = report.level != level
                || in_force.is_some_and(|version| report.policy_version != version);
            report.level = level;
            if let Some(version) = in_force {
                version.clone_into(&mut report.policy_version);
            }
            news
        });
    }
}
