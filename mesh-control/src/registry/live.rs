//! The state of the mesh as it is served: what the sources say, and over it what nodes report of
//! their own pods: health, and addresses that the source doesn't say yet.

mod agents;
mod coverage;
mod overlay;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::STATE_CUT_OFF;
use mesh_api::admin::{NodeStatus, PodStatus, Status};
use mesh_api::node::NodeReport;
use mesh_core::model::{Enrolment, Health, WorkloadUid};
use tokio::sync::{Notify, watch};

pub use agents::Agent;
pub use coverage::{Coverage, Scope};

use super::report::{NodeRecord, TooManyReports};
use super::versions::Versions;
use super::{Change, Changed, Directory, Interest, Pending, Resource, StreamId, Subject, Topic};

/// A node without pods that has been silent for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// How often nodes are looked through for those.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// The state of the mesh, fed by the sources and by nodes' reports.
///
/// What a node says of a pod's health holds until it says otherwise, also while it is silent: a
/// node that can't reach control may still serve. It ends with the pod, and with this process:
/// after a restart a pod is healthy until its node reports, 10 s later at most.
#[derive(Debug)]
pub struct Registry {
    state: Mutex<State>,
    version: watch::Sender<Arc<str>>,
}

#[derive(Debug)]
struct State {
    served: Directory,
    /// Of pods that are served in another way than the sources say, by what their nodes report:
    /// what the sources say.
    overlaid: BTreeMap<WorkloadUid, Arc<Resource>>,
    /// Pods with an address by their nodes' word that is another's.
    contested: BTreeSet<WorkloadUid>,
    nodes: BTreeMap<String, NodeRecord>,
    interest: Interest,
    news: HashMap<StreamId, Arc<Notify>>,
    looked_through: Option<Instant>,
    versions: Versions,
}

/// The state that is served now. Nothing changes while it is held.
pub struct View<'a>(MutexGuard<'a, State>);

impl Deref for View<'_> {
    type Target = Directory;

    fn deref(&self) -> &Directory {
        &self.0.served
    }
}

impl Registry {
    /// Serves what the sources say.
    #[must_use]
    pub fn new(sources: Directory) -> Self {
        let mut versions = Versions::default();
        versions.note(sources.version());
        Self {
            version: watch::Sender::new(sources.version()),
            state: Mutex::new(State {
                served: sources,
                overlaid: BTreeMap::new(),
                contested: BTreeSet::new(),
                nodes: BTreeMap::new(),
                interest: Interest::default(),
                news: HashMap::new(),
                looked_through: None,
                versions,
            }),
        }
    }

    /// The version that is served, and its changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<str>> {
        self.version.subscribe()
    }

    /// The state that is served now. Not to be held across an await.
    #[must_use]
    pub fn current(&self) -> View<'_> {
        View(self.lock())
    }

    /// Takes all that the sources say now. Returns the number of the state that has it: a later state
    /// has a higher one.
    pub fn set_sources(&self, sources: &Directory, now: Instant) -> u64 {
        let mut state = self.lock();
        let mut changes = state.served.changes_to(sources);
        // What differs from what the sources said before is news, not what a node has said.
        changes.retain(|change| match change {
            Change::Put(resource) => state
                .overlaid
                .get(&resource.name)
                .is_none_or(|told| told.version != resource.version),
            Change::Remove(..) => true,
        });
        self.change(&mut state, changes, now);
        state.forget(now);
        state.versions.last()
    }

    /// The number of the state that is served.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.lock().versions.last()
    }

    /// Takes what the sources say is another now.
    pub fn apply(&self, changes: Vec<Change>, now: Instant) {
        self.change(&mut self.lock(), changes, now);
    }

    /// Takes the report of a node.
    ///
    /// # Errors
    /// A node that reports too often.
    pub fn report(
        &self,
        node: &str,
        report: &NodeReport,
        now: Instant,
    ) -> Result<(), TooManyReports> {
        let mut state = self.lock();
        let State { served, nodes, .. } = &mut *state;
        let record = nodes
            .entry(node.to_owned())
            .or_insert_with(|| NodeRecord::new(now));
        let before: Vec<WorkloadUid> = record.pods.keys().cloned().collect();
        record.take(node, report, served.mesh(), now)?;
        let after = record.pods.keys().cloned();
        let pods: BTreeSet<WorkloadUid> = before.into_iter().chain(after).collect();
        let changes = pods.iter().filter_map(|uid| state.anew(uid)).collect();
        self.change(&mut state, changes, now);
        Ok(())
    }

    /// Everything about the nodes.
    #[must_use]
    pub fn status(&self, now: Instant) -> Status {
        let state = self.lock();
        let mesh = state.served.mesh();
        let version = state.served.version();
        let mut nodes: BTreeMap<&str, NodeStatus> = BTreeMap::new();
        for (name, record) in &state.nodes {
            let status = nodes.entry(name).or_default();
            status.report = Some(record.status(&version, now));
        }
        for workload in mesh.workloads() {
            let record = state.nodes.get(&workload.node);
            let report = record.and_then(|record| record.pods.get(&workload.uid));
            if report.is_none() && !workload.enrolled() {
                continue;
            }
            let status = nodes.entry(&workload.node).or_default();
            status.pods.push(PodStatus {
                namespace: workload.identity.namespace().to_owned(),
                name: workload.name.clone(),
                enrolment: enrolment(workload.enrolment).to_owned(),
                report: report.cloned(),
            });
        }
        let named = |(name, status): (&str, NodeStatus)| NodeStatus {
            name: name.to_owned(),
            ..status
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            discovery_version: version.to_string(),
            workloads: mesh.workloads().count(),
            services: mesh.services().count(),
            policies: mesh.authorizations().count() + mesh.authentications().count(),
            namespaces_on_default: Vec::new(),
            nodes: nodes.into_iter().map(named).collect(),
        }
    }

    /// Pods that their nodes have cut off, with what is in their way.
    pub(crate) fn cut_off(&self) -> BTreeMap<WorkloadUid, String> {
        let state = self.lock();
        let pods = state.nodes.values().flat_map(|record| &record.pods);
        pods.filter(|(_, pod)| pod.state == STATE_CUT_OFF)
            .map(|(uid, pod)| (uid.clone(), pod.reason.clone()))
            .collect()
    }

    /// A stream has begun; `news` is notified when there is something to tell it.
    pub(crate) fn join(&self, news: Arc<Notify>) -> StreamId {
        let mut state = self.lock();
        let id = state.interest.join();
        state.news.insert(id, news);
        id
    }

    /// A stream has ended.
    pub(crate) fn leave(&self, id: StreamId) {
        let mut state = self.lock();
        state.interest.leave(id);
        state.news.remove(&id);
    }

    /// What a stream is told of the state now, by what has changed for it; and what it has an
    /// interest in from then on, where that is another.
    pub(crate) fn tell<T>(
        &self,
        id: StreamId,
        tell: impl FnOnce(&Directory, &Pending) -> (T, Option<BTreeSet<Topic>>),
    ) -> T {
        let mut state = self.lock();
        let pending = state.interest.take(id);
        let (told, topics) = tell(&state.served, &pending);
        if let Some(topics) = topics {
            state.interest.set_topics(id, topics);
        }
        told
    }

    /// Makes changes of the sources, or of what lies over them, and wakes those that they concern.
    fn change(&self, state: &mut State, changes: Vec<Change>, now: Instant) {
        let changes = state.over(changes);
        let mut changed = state.served.apply(changes);
        for one in &changed {
            state.moved(one);
        }
        // An address may have become free.
        let waiting = state.contested_anew();
        let waiting = state.over(waiting);
        changed.extend(state.served.apply(waiting));
        if changed.is_empty() {
            return;
        }
        changed.iter().for_each(log_health);
        for id in state.interest.note(&changed, now) {
            if let Some(news) = state.news.get(&id) {
                news.notify_one();
            }
        }
        state.forget_sometimes(now);
        state.versions.note(state.served.version());
        self.version.send_replace(state.served.version());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done but by a bug in memory.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A pod that is gone, or has gone to another node, is none that its node speaks for.
    fn moved(&mut self, changed: &Changed) {
        let (Some(old), new) = (&changed.old, &changed.new) else {
            return;
        };
        if let Subject::Workload(old, _) = &old.subject {
            let stays = new.as_ref().is_some_and(
                |new| matches!(&new.subject, Subject::Workload(new, _) if new.node == old.node),
            );
            if let Some(record) = self.nodes.get_mut(&old.node).filter(|_| !stays) {
                record.pods.remove(&old.uid);
                record.addresses.remove(&old.uid);
            }
        }
    }

    fn forget_sometimes(&mut self, now: Instant) {
        let due = self
            .looked_through
            .is_none_or(|at| now.saturating_duration_since(at) >= FORGET_INTERVAL);
        if due {
            self.forget(now);
        }
    }

    fn forget(&mut self, now: Instant) {
        self.looked_through = Some(now);
        let served = &self.served;
        self.nodes.retain(|node, record| {
            served.mesh().on_node(node).next().is_some() || record.age(now) < FORGET_AFTER
        });
    }
}

fn enrolment(level: Enrolment) -> &'static str {
    match level {
        Enrolment::None => "none",
        Enrolment::Audit => "audit",
        Enrolment::Enforce => "enforce",
    }
}

/// Says whether a pod changed its health.
fn log_health(changed: &Changed) {
    let workload = |side: &Option<Arc<Resource>>| match side.as_ref().map(|r| &r.subject) {
        Some(Subject::Workload(workload, _)) => Some(workload.clone()),
        _ => None,
    };
    let Some(now) = workload(&changed.new) else {
        return;
    };
    let before = workload(&changed.old).map(|workload| workload.health);
    let (pod, node) = (&now.uid, &now.node);
    match (before.unwrap_or_default(), now.health) {
        (Health::Healthy, Health::Unhealthy) => {
            tracing::warn!(%pod, node, "endpoint unhealthy, by its node's checks");
        }
        (Health::Unhealthy, Health::Healthy) => {
            tracing::info!(%pod, node, "endpoint healthy again");
        }
        _ => {}
    }
}
