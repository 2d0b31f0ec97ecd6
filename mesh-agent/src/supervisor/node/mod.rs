//! The supervisor's main task: the pods that were added, and what is to become of each.

mod asks;
mod found;
mod gone;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::admin::Ask;
use super::adopt::open_netns;
use super::pods::{Goal, Origin, PodKey, PodRecord};
use super::reconcile::{Desire, Step, desire, standing, step};
use super::report::{PodReport, PodState};
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
    told: found::Told,
}

impl Node {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            pods: BTreeMap::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
            told: found::Told::default(),
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
        let mut look = interval(gone::LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.reconcile();
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(ask) = asks.recv() => self.hear(ask),
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                Ok(()) = changes.changed() => {}
                _ = look.tick() => {
                    self.forget_gone();
                    self.find_running();
                }
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
            container: record.origin.container.clone(),
            running: record.origin.running,
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
        let origin = self.pods.get(key).map(|pod| &pod.record.origin);
        let unknown = Origin::default();
        let origin = origin.unwrap_or(&unknown);
        desire(mesh, &config.node, &config.cluster_id, key, origin)
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
        self.shared.news.send_replace(());
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
