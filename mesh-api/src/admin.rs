//! The control component's admin socket, `<state-dir>/control.sock`: one JSON object a line,
//! a [`Request`] in, a [`Response`] out. Root only.

use std::net::IpAddr;

use mesh_core::policy::Protocol;
use serde::{Deserialize, Serialize};

/// Name of the socket in the state folder.
pub const SOCKET_NAME: &str = "control.sock";

/// Longest request line, in bytes.
pub const MAX_LINE: u64 = 64 * 1024;

/// One line from a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// What the mesh would do with a flow, and why.
    Why {
        /// Where it comes from.
        source: Place,
        /// What is dialled.
        destination: Place,
        /// The port that is dialled. Without it, the only one that the destination has.
        #[serde(default)]
        port: Option<u16>,
        /// TCP or UDP.
        #[serde(with = "protocol")]
        protocol: Protocol,
    },
    /// Everything about the mesh's nodes.
    Status,
    /// The component's own series, as Prometheus reads them.
    Metrics,
}

/// One end of a flow, as an operator names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// `<namespace>/<name>` of a pod.
    Pod(String),
    /// `<namespace>/<name>` of a service.
    Service(String),
    /// `<namespace>/<name>` of whichever of the two there is.
    Name(String),
    /// An IP address.
    Address(IpAddr),
}

/// One line back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Why there is no answer; absent when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Answer to [`Request::Why`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// Answer to [`Request::Status`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Answer to [`Request::Metrics`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
}

/// What becomes of a flow in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It passes.
    Allowed,
    /// It passes, somewhere only because a pod is enrolled for audit.
    Audited,
    /// It passes to some endpoints and not to others.
    Partly,
    /// It does not pass.
    Refused,
}

/// What the mesh would do with a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// In the end.
    pub outcome: Outcome,
    /// Why it is refused.
    pub reason: Option<Reason>,
    /// The errno of the app's `connect`, where the kernel refuses.
    pub errno: Option<String>,
    /// What was dialled, as discovery knows it.
    pub dialled: String,
    /// Where it may lead, each with the decisions of both ends.
    pub attempts: Vec<Attempt>,
    /// Manifests that would allow it.
    pub missing: Vec<String>,
    /// All of that for people.
    pub text: String,
}

/// A reason for a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Its stable code, as in logs and metrics.
    pub code: String,
    /// What happened.
    pub sentence: String,
    /// What would change it, or where to look.
    pub remedy: String,
}

/// One place that a flow may lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Id of the workload there, if discovery knows one.
    pub workload: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// The port on it.
    pub port: u16,
    /// Whether it would be mutual TLS.
    pub encrypted: bool,
    /// At the source's worker; absent where there is none.
    pub outbound: Option<Decision>,
    /// At the destination's worker; absent where there is none, or the flow doesn't come there.
    pub inbound: Option<Decision>,
}

/// One decision, at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Why it is refused; absent where it is allowed.
    pub refused: Option<Reason>,
    /// It would be refused, and passes for audit.
    pub audited: bool,
    /// `<namespace>/<name>` of the policy that decided.
    pub policy: Option<String>,
}

/// The mesh, as control and its nodes see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The control component's version.
    pub version: String,
    /// Version of the state of the mesh that is served.
    pub discovery_version: String,
    /// Pods known.
    pub workloads: usize,
    /// Services known.
    pub services: usize,
    /// Policies known, of both kinds.
    pub policies: usize,
    /// Namespaces with several enrolled pods that all run as the service account `default`.
    #[serde(default)]
    pub namespaces_on_default: Vec<String>,
    /// Nodes that reported, and nodes that enrolled pods are bound to.
    pub nodes: Vec<NodeStatus>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// What its agent told; absent while control has not heard of it since it started.
    pub report: Option<NodeReport>,
    /// Its pods that are in the mesh or that it told of.
    pub pods: Vec<PodStatus>,
}

/// What a node's agent told of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The agent's version.
    pub version: String,
    /// How long ago it last told, in seconds.
    pub age_s: u64,
    /// It has missed its reports. What it said last of its pods' health stays.
    pub silent: bool,
    /// Version of the state of the mesh that it has in force.
    pub discovery_version: String,
    /// That is not the one that is served.
    pub behind: bool,
    /// Why it can't enrol pods, by its own word; absent where it can.
    #[serde(default)]
    pub not_ready: Option<String>,
    /// By how much its clock is ahead of control's, in seconds; absent where that is not notable.
    #[serde(default)]
    pub clock_ahead_s: Option<i64>,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// How far it is in the mesh: `none`, `audit`, `enforce`.
    pub enrolment: String,
    /// What its node told of it; absent if nothing.
    pub report: Option<PodReport>,
}

/// What a node told of one of its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// Where it stands, such as `enrolled`.
    pub state: String,
    /// Why it stands there.
    pub reason: String,
    /// Its worker's process id; absent without a worker.
    pub worker_pid: Option<i32>,
    /// Its worker's version.
    pub worker_version: String,
    /// Workers of the pod that ended unasked.
    pub worker_restarts: u64,
    /// End of its certificate, in seconds since the epoch; absent without one.
    pub certificate_not_after_s: Option<i64>,
    /// Version of the state of the mesh whose policy its worker has in force.
    pub policy_version: String,
    /// CPU time that its workers have used, in microseconds.
    #[serde(default)]
    pub worker_cpu_us: u64,
    /// Memory that its worker has in use, in bytes, kernel memory included.
    #[serde(default)]
    pub worker_memory_bytes: u64,
    /// By what its worker's budget is in force, such as `cpu by cgroup v2`.
    #[serde(default)]
    pub budget: Vec<String>,
    /// What of the budget is not in force, and why.
    #[serde(default)]
    pub budget_unenforced: Vec<String>,
    /// An active health check fails.
    pub unhealthy: bool,
    /// Which and how.
    pub health_detail: String,
}

/// [`Protocol`] as `tcp` and `udp`.
mod protocol {
    use mesh_core::policy::Protocol;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        protocol: &Protocol,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Protocol, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            other => Err(D::Error::custom(format!(
                "{other:?} is none of \"tcp\", \"udp\""
            ))),
        }
    }
}
