//! The state of the mesh as it is served: what the sources say, and over it the health that
//! nodes report of their own pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::STATE_CUT_OFF;
use mesh_api::admin::{NodeStatus, PodStatus, Status};
use mesh_api::node::NodeReport;
use mesh_core::model::{Enrolment, Health, Mesh, Workload, WorkloadUid};
use tokio::sync::watch;

use super::Directory;
use super::report::{NodeRecord, TooManyReports};

/// A node without pods that has been silent for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// The state of the mesh, fed by the sources and by nodes' reports.
///
/// What a node says of a pod's health holds until it says otherwise, also while it is silent: a
/// node that can't reach control may still serve. It ends with the pod, and with this process:
/// after a restart a pod is healthy until its node reports, 10 s later at most.
#[derive(Debug)]
pub struct Registry {
    state: Mutex<State>,
    served: watch::Sender<Arc<Directory>>,
}

#[derive(Debug)]
struct State {
    sources: Arc<Directory>,
    nodes: BTreeMap<String, NodeRecord>,
}

impl Registry {
    /// Serves what the sources say.
    #[must_use]
    pub fn new(sources: Directory) -> Self {
        let sources = Arc::new(sources);
        Self {
            served: watch::Sender::new(sources.clone()),
            state: Mutex::new(State {
                sources,
                nodes: BTreeMap::new(),
            }),
        }
    }

    /// The state that is served, and its changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Directory>> {
        self.served.subscribe()
    }

    /// The state that is served now.
    #[must_use]
    pub fn current(&self) -> Arc<Directory> {
        self.served.borrow().clone()
    }

    /// Takes what the sources say now.
    pub fn set_sources(&self, sources: Directory, now: Instant) {
        let mut state = self.lock();
        state.sources = Arc::new(sources);
        state.forget(now);
        self.publish(&state);
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
        let State { sources, nodes } = &mut *state;
        let record = nodes
            .entry(node.to_owned())
            .or_insert_with(|| NodeRecord::new(now));
        record.take(node, report, sources.mesh(), now)?;
        self.publish(&state);
        Ok(())
    }

    /// Everything about the nodes.
    #[must_use]
    pub fn status(&self, now: Instant) -> Status {
        let state = self.lock();
        let served = self.current();
        let mesh = served.mesh();
        let mut nodes: BTreeMap<&str, NodeStatus> = BTreeMap::new();
        for (name, record) in &state.nodes {
            let status = nodes.entry(name).or_default();
            status.report = Some(record.status(served.version(), now));
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
            discovery_version: served.version().to_string(),
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

    /// Serves what is known now, if that is news.
    fn publish(&self, state: &State) {
        let unhealthy = state.unhealthy();
        let now = match unhealthy.is_empty() {
            true => state.sources.clone(),
            false => Arc::new(state.sources.with_workloads(unhealthy)),
        };
        self.served.send_if_modified(|served| {
            let news = served.version() != now.version();
            if news {
                log_health(served.mesh(), now.mesh());
                *served = now;
            }
            news
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The workloads whose health is not what the sources say, as they are to be served. A node
    /// counts for the pods that are bound to it now.
    fn unhealthy(&self) -> Vec<Workload> {
        let pods = self.nodes.iter().flat_map(|(node, record)| {
            let unhealthy = record.pods.iter().filter(|(_, pod)| pod.unhealthy);
            unhealthy.map(move |(uid, _)| (node, uid))
        });
        pods.filter_map(|(node, uid)| {
            let workload = self.sources.mesh().workload(uid)?;
            (workload.node == *node).then(|| Workload {
                health: Health::Unhealthy,
                ..Workload::clone(workload)
            })
        })
        .collect()
    }

    fn forget(&mut self, now: Instant) {
        let mesh = self.sources.mesh();
        let bound: BTreeSet<&str> = mesh.workloads().map(|w| w.node.as_str()).collect();
        self.nodes.retain(|node, record| {
            record.forget_pods(node, mesh);
            bound.contains(node.as_str()) || record.age(now) < FORGET_AFTER
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

/// Says which pods changed their health.
fn log_health(before: &Mesh, now: &Mesh) {
    for workload in now.workloads() {
        let old = before.workload(&workload.uid).map(|w| w.health);
        let (pod, node) = (&workload.uid, &workload.node);
        match (old.unwrap_or_default(), workload.health) {
            (Health::Healthy, Health::Unhealthy) => {
                tracing::warn!(%pod, node, "endpoint unhealthy, by its node's checks");
            }
            (Health::Unhealthy, Health::Healthy) => {
                tracing::info!(%pod, node, "endpoint healthy again");
            }
            _ => {}
        }
    }
}
