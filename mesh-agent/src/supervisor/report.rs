//! What the supervisor tells about itself and its pods: `status`, `pod list`, `pod add`.

use std::net::IpAddr;
use std::path::PathBuf;

use mesh_api::STATE_CUT_OFF;
use serde::{Deserialize, Serialize};

use crate::sandbox::cgroup::MeshCgroup;

/// Where a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodState {
    /// Control has not told (yet) whether the pod is in the mesh.
    Waiting,
    /// Control says that the pod's namespace is not enrolled.
    NotInMesh,
    /// Its worker is on its way, or on its way back; nothing leaves in clear meanwhile.
    Starting,
    /// Captured, with a ready worker.
    Enrolled,
    /// It can't be enrolled as it is; `reason` says what is in the way. Tried again.
    Refused,
    /// It can't be served as it is, so it reaches nothing and nothing reaches it; `reason` says
    /// what is in the way. Tried again.
    CutOff,
    /// It is being taken out of the mesh.
    Leaving,
}

impl PodState {
    /// As `status` and control have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::NotInMesh => "not-in-mesh",
            Self::Starting => "starting",
            Self::Enrolled => "enrolled",
            Self::Refused => "refused",
            Self::CutOff => STATE_CUT_OFF,
            Self::Leaving => "leaving",
        }
    }
}

/// How far an enrolled pod is in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Policy is enforced.
    Enforce,
    /// What policy would refuse is let through, counted and logged.
    Audit,
}

impl Level {
    /// As the operator writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

/// A worker that was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainingReport {
    /// Its process id.
    pub pid: i32,
    /// Connections that it had open when it was asked last, both ways.
    pub connections: u64,
    /// When it cuts what is left, in seconds since the epoch.
    pub until_s: i64,
}

/// How far the replacement of the node's workers has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollReport {
    /// Workers that run another program than this supervisor's, or are to be replaced by order.
    pub left: usize,
    /// Pods whose next worker is being born now.
    pub under_way: Vec<String>,
    /// Workers replaced since this supervisor started.
    pub done: u64,
    /// Times that a new worker was not ready, or did not stay.
    pub failed: u64,
    /// Why no more are replaced; empty while it goes on.
    pub stopped: String,
}

/// Whose connections pass to the ports that pods declare for probes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeletReport {
    /// Kubelet's cgroup, from the root of the hierarchy; empty where it is not known.
    pub cgroup: String,
    /// Why it is not known.
    pub fault: String,
}

/// Connections of a pod that are older than its enrolment, and go on outside the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Older {
    /// How many there are.
    pub connections: usize,
    /// When the last of them ends, in seconds since the epoch.
    pub until_s: Option<i64>,
    /// With whom; some of them where there are many.
    pub peers: Vec<String>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Where it stands.
    pub state: PodState,
    /// Why it stands there; empty when there is nothing to say.
    pub reason: String,
    /// Path of its network namespace, as added.
    pub netns: PathBuf,
    /// The runtime's id of its sandbox; empty where no runtime has told of it.
    #[serde(default)]
    pub container: String,
    /// It was found running, and not added before its first container started.
    #[serde(default)]
    pub running: bool,
    /// Its slot in the kernel's per-pod maps.
    pub slot: u32,
    /// Uid of its worker.
    pub uid: u32,
    /// cgroup of its worker, below the cgroup2 mount.
    pub cgroup: String,
    /// What becomes of processes that use the pod's network and are none of its own: `audit`,
    /// `refuse` or `refuse-exec`; empty while they can't be told.
    #[serde(default)]
    pub foreign_processes: String,
    /// By what the cgroup's part of its worker's budget is in force, such as `cpu by cgroup v2`.
    #[serde(default)]
    pub budget: Vec<String>,
    /// What of the budget is not in force, and why.
    #[serde(default)]
    pub budget_unenforced: Vec<String>,
    /// CPU time that its workers have used since it was enrolled, in microseconds.
    #[serde(default)]
    pub cpu_us: u64,
    /// Memory that its worker has in use, in bytes, kernel memory included.
    #[serde(default)]
    pub memory_bytes: u64,
    /// The worker's process id.
    pub worker_pid: Option<u32>,
    /// The worker runs another program than those that this supervisor starts: it is to be replaced.
    #[serde(default)]
    pub worker_outdated: bool,
    /// The worker speaks another version of the protocol: it knows nothing that is newer than this
    /// supervisor's start, and is replaced also where `--roll manual` says nothing is.
    #[serde(default)]
    pub worker_foreign: bool,
    /// Workers that were replaced and finish what they have.
    #[serde(default)]
    pub draining: Vec<DrainingReport>,
    /// Whether the worker listens and holds a valid certificate.
    pub ready: bool,
    /// Workers of this pod that ended unasked since this supervisor started.
    pub restarts: u64,
    /// Those of them that the kernel ended because they were at their memory limit.
    #[serde(default)]
    pub oom_kills: u64,
    /// End of the worker's certificate, in seconds since the epoch.
    pub certificate_not_after_s: Option<i64>,
    /// SPIFFE ID; empty while unknown.
    pub identity: String,
    /// Its addresses, by discovery or, before that knows any, by its network.
    pub addresses: Vec<IpAddr>,
    /// They were seen in its network namespace.
    #[serde(skip)]
    pub(super) located: bool,
    /// Its level; absent while discovery doesn't say.
    pub level: Option<Level>,
    /// Version of the worker's program; empty while there is none.
    pub worker_version: String,
    /// Discovery version whose policy the worker has in force; empty before it has said so.
    pub policy_version: String,
    /// An active health check of its app fails.
    pub unhealthy: bool,
    /// Which one, and how.
    pub health_detail: String,
    /// Connections that are older than its enrolment.
    #[serde(default)]
    pub older: Older,
    /// Ports of its that kubelet's connections pass to.
    #[serde(default)]
    pub probe_ports: Vec<u16>,
}

impl PodReport {
    /// The same with what the pod's workers have used until now.
    pub(super) fn with_usage(mut self, mesh: &MeshCgroup) -> Self {
        let child = format!("{}_{}", self.namespace, self.name);
        let usage = mesh.usage(&child).unwrap_or_default();
        self.cpu_us = usage.cpu_us;
        self.memory_bytes = usage.memory_bytes;
        self
    }

    /// Of a pod that was just added, with the fields left empty that this agent gives it.
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            state: PodState::Waiting,
            reason: String::new(),
            netns: PathBuf::new(),
            container: String::new(),
            running: false,
            slot: 0,
            uid: 0,
            cgroup: String::new(),
            foreign_processes: String::new(),
            budget: Vec::new(),
            budget_unenforced: Vec::new(),
            cpu_us: 0,
            memory_bytes: 0,
            worker_pid: None,
            worker_outdated: false,
            worker_foreign: false,
            draining: Vec::new(),
            ready: false,
            restarts: 0,
            oom_kills: 0,
            certificate_not_after_s: None,
            identity: String::new(),
            addresses: Vec::new(),
            located: false,
            level: None,
            worker_version: String::new(),
            policy_version: String::new(),
            unhealthy: false,
            health_detail: String::new(),
            older: Older::default(),
            probe_ports: Vec::new(),
        }
    }
}

/// The stream to the control component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlReport {
    /// The discovery stream is up.
    pub connected: bool,
    /// Address of the replica in use; empty before there is one.
    #[serde(default)]
    pub replica: String,
    /// Discovery is known: from control, or the last good state of an earlier run.
    pub synced: bool,
    /// Workloads known.
    pub workloads: usize,
    /// Services known.
    pub services: usize,
    /// Authorization policies and authentication scopes known.
    pub policies: usize,
    /// Version of the mesh that is in effect here, as control gives it.
    pub discovery_version: String,
    /// Policies that this agent can't read; see its log. Nothing opens by them.
    pub unreadable_policies: Vec<String>,
    /// Last trouble with control; empty when there is none.
    pub last_error: String,
    /// End of the node's certificate, in seconds since the epoch.
    pub node_certificate_not_after_s: Option<i64>,
}

/// `mesh-agent status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Node name.
    pub node: String,
    /// Instance name.
    pub instance: String,
    /// The supervisor's process id.
    pub pid: u32,
    /// The agent's version.
    pub version: String,
    /// The control component.
    pub control: ControlReport,
    /// The replacement of workers by those of another program.
    #[serde(default)]
    pub roll: RollReport,
    /// Why the CNI plugin is not in place, where it is to be.
    #[serde(default)]
    pub cni_fault: Option<String>,
    /// Whose connections pass as probes.
    #[serde(default)]
    pub kubelet: KubeletReport,
    /// Every pod that was added.
    pub pods: Vec<PodReport>,
}

impl From<bool> for Level {
    /// From whether a pod is enrolled for audit only.
    fn from(audit: bool) -> Self {
        if audit { Self::Audit } else { Self::Enforce }
    }
}
