//! The supervisor's main task: the pods that were added, and what is to become of each.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};

use super::admin::Ask;
use super::adopt::open_netns;
use super::netns::Netns;
use super::pods::{Goal, PodKey, PodRecord, free_slot};
use super::reconcile::{Desire, Step, desire, standing, step};
use super::report::{PodReport, PodState, StatusReport};
use super::reporter::Reporter;
use super::shared::{PodHandle, Shared};
use super::workers::{Command, PodTask};

/// What a pod's open connections get when the pod leaves the mesh but lives on.
const DRAIN: Duration = Duration::from_secs(5);

/// A pod that was added.
struct Pod {
    record: PodRecord,
    report: Arc<Reporter>,
    running: Option<Running>,
    /// Set once the pod is to be forgotten; answered when nothing of it is left.
    removal: Vec<oneshot::Sender<Result<(), String>>>,
    removing: bool,
}

/// A pod's task.
struct Running {
    goal: Goal,
    commands: mpsc::Sender<Command>,
    leaving: bool,
}

/// The main task's state.
pub(super) struct Node {
    shared: Arc<Shared>,
    pods: BTreeMap<PodKey, Pod>,
    tasks: JoinSet<PodRecord>,
    names: HashMap<Id, PodKey>,
}

impl Node {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            pods: BTreeMap::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
        }
    }

    /// Takes up the pods of an earlier run. Those that were being enrolled are taken up as
    /// they were, whatever control says later.
    pub(super) fn restore(&mut self) -> std::io::Result<()> {
        let (records, faults) = self.shared.records.load()?;
        for fault in faults {
            tracing::error!(
                fault,
                "a pod's record can't be read; the pod stays as it is"
            );
        }
        for record in records {
            let key = record.key.clone();
            let goal = record.placed.as_ref().map(|placed| placed.goal.clone());
            self.insert(record);
            if let Some(goal) = goal {
                self.start(&key, goal);
            }
        }
        self.publish();
        self.report_orphans();
        Ok(())
    }

    /// Pods that are captured and that nobody knows: nothing of theirs leaves in clear.
    fn report_orphans(&self) {
        let known: Vec<u64> = self
            .pods
            .values()
            .map(|pod| pod.record.netns_id.cookie)
            .collect();
        for (cookie, pod) in self.shared.capture().enrolled().unwrap_or_default() {
            if !known.contains(&cookie) {
                tracing::warn!(
                    netns_cookie = cookie,
                    slot = pod.slot,
                    "captured, but its pod's record is gone: it stays cut off until `mesh-agent unload`"
                );
            }
        }
    }

    /// Serves asks and follows discovery, until `stop`.
    pub(super) async fn run(
        mut self,
        mut asks: mpsc::Receiver<Ask>,
        stop: impl Future<Output = ()>,
    ) {
        let mut changes = self.shared.discovery.changes();
        let mut stop = std::pin::pin!(stop);
        self.reconcile();
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(ask) = asks.recv() => self.hear(ask),
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                Ok(()) = changes.changed() => {}
            }
            self.reconcile();
        }
        // Workers and capture stay: their tasks end with their senders.
        for pod in self.pods.values_mut() {
            pod.running = None;
        }
        self.shared.pods().clear();
        while self.tasks.join_next().await.is_some() {}
    }

    fn insert(&mut self, record: PodRecord) {
        let cgroup = format!(
            "nodemesh-{}/{}",
            self.shared.config.instance,
            record.key.joined()
        );
        let report = PodReport {
            netns: record.netns.clone(),
            slot: record.slot,
            uid: self.shared.worker_uid(record.slot),
            cgroup,
            ..PodReport::new(&record.key.namespace, &record.key.name)
        };
        let pod = Pod {
            report: Arc::new(Reporter::new(report, self.shared.news.clone())),
            running: None,
            removal: Vec::new(),
            removing: false,
            record,
        };
        self.pods.insert(pod.record.key.clone(), pod);
    }

    fn hear(&mut self, ask: Ask) {
        match ask {
            Ask::Add {
                namespace,
                name,
                netns,
                reply,
            } => {
                let _ = reply.send(self.add(&namespace, &name, &netns));
            }
            Ask::Remove {
                namespace,
                name,
                reply,
            } => self.remove(&namespace, &name, reply),
            Ask::Status { reply } => drop(reply.send(self.status())),
        }
    }

    fn add(
        &mut self,
        namespace: &str,
        name: &str,
        path: &Path,
    ) -> Result<watch::Receiver<PodReport>, String> {
        let key = PodKey::new(namespace, name)?;
        let netns = Netns::open(path).map_err(|e| e.to_string())?;
        let paired = self
            .pods
            .values()
            .find(|pod| pod.record.netns_id == netns.id);
        match paired {
            Some(pod) if pod.record.key == key && !pod.removing => {
                return Ok(pod.report.subscribe());
            }
            Some(pod) if pod.record.key == key => {
                return Err(format!("{key} is being removed; try again"));
            }
            Some(pod) => {
                let other = &pod.record.key;
                return Err(format!(
                    "{} is the network namespace of {other}; two pods can't share one, remove {other} first",
                    path.display()
                ));
            }
            None => {}
        }
        if let Some(pod) = self.pods.get(&key) {
            let known = pod.record.netns.display();
            return Err(format!(
                "{key} was added with another network namespace ({known}): remove it first"
            ));
        }
        let slot = self.free_slot()?;
        let record = PodRecord::new(key.clone(), path.to_owned(), netns.id, slot);
        self.shared.records.save(&record)?;
        tracing::info!(pod = %key, netns = %path.display(), slot, "pod added");
        self.insert(record);
        self.reconcile();
        let pod = self.pods.get(&key).ok_or("the pod is gone")?;
        Ok(pod.report.subscribe())
    }

    /// A slot that neither a pod has nor anything in the kernel, such as what is left of a
    /// pod whose record is lost.
    fn free_slot(&self) -> Result<u32, String> {
        let capture = self.shared.capture();
        let enrolled = capture.enrolled().map_err(|e| e.to_string())?;
        let walls = capture.walls().map_err(|e| e.to_string())?;
        let known = self.pods.values().map(|pod| pod.record.slot);
        let enrolled = enrolled.iter().map(|(_, pod)| pod.slot);
        let walls = walls.iter().map(|(_, wall)| wall.slot);
        free_slot(known.chain(enrolled).chain(walls))
            .ok_or_else(|| "this agent has as many pods as it can enrol".to_owned())
    }

    fn remove(&mut self, namespace: &str, name: &str, reply: oneshot::Sender<Result<(), String>>) {
        let key = match PodKey::new(namespace, name) {
            Ok(key) => key,
            Err(why) => return drop(reply.send(Err(why))),
        };
        // As CNI wants it: what isn't there is removed already.
        let Some(pod) = self.pods.get_mut(&key) else {
            return drop(reply.send(Ok(())));
        };
        pod.removal.push(reply);
        pod.removing = true;
        if let Some(running) = &mut pod.running {
            running.leave(Duration::ZERO);
            return;
        }
        if pod.record.placed.is_some() {
            // Its namespace could not be opened, so it has no task: clean up without it.
            let record = pod.record.clone();
            let shared = self.shared.clone();
            let handle = self.tasks.spawn(super::unload::clear_away(shared, record));
            self.names.insert(handle.id(), key);
            return;
        }
        self.forget(&key);
    }

    fn forget(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        let outcome = self.shared.records.delete(key).map_err(|e| {
            format!("{key} is out of the mesh, but its record could not be deleted: {e}")
        });
        tracing::info!(pod = %key, "pod removed");
        for reply in pod.removal {
            let _ = reply.send(outcome.clone());
        }
        self.publish();
    }

    fn status(&self) -> StatusReport {
        StatusReport {
            node: self.shared.config.node.clone(),
            instance: self.shared.config.instance.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control: self.shared.control.report(),
            pods: self
                .pods
                .values()
                .map(|pod| pod.report.borrow().clone())
                .collect(),
        }
    }

    /// Brings every pod a step nearer to what control says of it.
    fn reconcile(&mut self) {
        let keys: Vec<PodKey> = self.pods.keys().cloned().collect();
        for key in keys {
            let desire = self.desire(&key);
            let Some(pod) = self.pods.get_mut(&key).filter(|pod| !pod.removing) else {
                continue;
            };
            let current = pod.running.as_ref().map(|running| &running.goal);
            match step(current, &desire) {
                Step::Keep if current.is_none() => {
                    pod.tell(standing(&desire, &self.shared.config.node));
                }
                Step::Keep => {}
                Step::Start(goal) => self.start(&key, goal),
                Step::Stop => {
                    if let Some(running) = &mut pod.running {
                        running.leave(DRAIN);
                    }
                }
            }
        }
        self.publish();
    }

    fn desire(&self, key: &PodKey) -> Desire {
        let discovery = &self.shared.discovery;
        let config = &self.shared.config;
        let view = discovery.known();
        let mesh = view.as_ref().map(|view| &view.mesh);
        desire(mesh, &config.node, &config.cluster_id, key)
    }

    fn start(&mut self, key: &PodKey, goal: Goal) {
        let Some(pod) = self.pods.get_mut(key) else {
            return;
        };
        let (commands, inbox) = mpsc::channel(16);
        let task = open_netns(&self.shared, &pod.record).and_then(|netns| {
            let (record, report) = (pod.record.clone(), pod.report.clone());
            PodTask::new(
                self.shared.clone(),
                record,
                netns,
                goal.clone(),
                report,
                inbox,
            )
        });
        match task {
            Ok(task) => {
                let handle = self.tasks.spawn(task.run());
                self.names.insert(handle.id(), key.clone());
                pod.running = Some(Running {
                    goal,
                    commands,
                    leaving: false,
                });
            }
            Err(why) => pod.tell((PodState::Refused, why)),
        }
    }

    fn task_ended(&mut self, ended: Result<(Id, PodRecord), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some(key) = self.names.remove(&id) else {
            return;
        };
        let Some(pod) = self.pods.get_mut(&key) else {
            return;
        };
        pod.running = None;
        match ended {
            Ok((_, record)) => pod.record = record,
            // Its record is as it was when the task began; the next one adopts what it left.
            Err(e) => {
                tracing::error!(pod = %key, error = %e, "the pod's task failed; starting anew");
            }
        }
        if pod.removing {
            self.forget(&key);
        }
    }

    /// Shows the pods to the other tasks.
    fn publish(&self) {
        let handles = self.pods.iter().map(|(key, pod)| {
            let handle = PodHandle {
                slot: pod.record.slot,
                report: pod.report.subscribe(),
                commands: pod.running.as_ref().map(|running| running.commands.clone()),
            };
            (key.clone(), handle)
        });
        *self.shared.pods() = handles.collect();
        self.shared.news.notify_one();
    }
}

impl Running {
    fn leave(&mut self, drain: Duration) {
        // A pod that is removed doesn't wait for a drain that began before.
        if !self.leaving || drain.is_zero() {
            self.leaving = self.commands.try_send(Command::Leave(drain)).is_ok();
        }
    }
}

impl Pod {
    fn tell(&self, (state, reason): (PodState, String)) {
        self.report.send_if_modified(|report| {
            let news = report.state != state || report.reason != reason;
            report.state = state;
            report.reason = reason;
            report.ready = false;
            news
        });
    }
}
