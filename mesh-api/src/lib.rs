//! Wire formats of Nodemesh, compiled from `proto/`: delta xDS with the WDS schema,
//! certificate signing, node join, the supervisor↔worker protocol, and control's admin socket.
#![forbid(unsafe_code)]

pub mod admin;
pub mod convert;
pub mod kinds;

/// Delta aggregated discovery.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod ads {
    tonic::include_proto!("envoy.service.discovery.v3");
}
/// Certificate signing.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}
/// Node join and renewal.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod node {
    tonic::include_proto!("nodemesh.node.v1");
}
/// Policy.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod policy {
    tonic::include_proto!("nodemesh.policy.v1");
}
/// Trust and revocation.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod trust {
    tonic::include_proto!("nodemesh.trust.v1");
}
/// What the workers at the two ends of a tunnel say to each other.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod tunnel {
    tonic::include_proto!("nodemesh.tunnel.v1");
}
/// Supervisor and worker.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod worker {
    tonic::include_proto!("nodemesh.worker.v1");
}
/// Policy as data planes of Istio's take it.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod security {
    tonic::include_proto!("istio.security");
}
/// Workload discovery.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// Type URL of [`workload::Address`] in delta xDS.
pub const ADDRESS_TYPE_URL: &str = "type.googleapis.com/istio.workload.Address";

/// Type URL of [`policy::Policy`] in delta xDS.
pub const POLICY_TYPE_URL: &str = "type.googleapis.com/nodemesh.policy.v1.Policy";

/// Type URL of [`security::Authorization`] in delta xDS.
pub const AUTHORIZATION_TYPE_URL: &str = "type.googleapis.com/istio.security.Authorization";

/// Name under which a node subscribes, in delta xDS, to what it takes to serve its own pods: of
/// [`ADDRESS_TYPE_URL`] and of [`POLICY_TYPE_URL`]. No resource has it.
pub const OWN_NAME: &str = "nodemesh.dev/own";

/// Version of the supervisor↔worker protocol. Either end refuses another major version
/// and names both.
pub const WORKER_PROTOCOL_VERSION: u32 = 3;

/// [`node::PodReport`]'s state of a pod that reaches nothing and is reached by nothing, because it
/// can't be served safely.
pub const STATE_CUT_OFF: &str = "cut-off";
