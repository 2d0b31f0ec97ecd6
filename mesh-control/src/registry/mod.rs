//! From sources' objects to the one model of the mesh, and from the model to what discovery
//! sends.

mod directory;
mod interest;
mod live;
mod report;
mod resource;
mod topic;
mod versions;

pub use directory::{Change, Changed, Directory};
pub use interest::{Interest, Pending, StreamId};
pub use live::{Agent, Coverage, Registry, Scope, View};
pub use report::TooManyReports;
pub use resource::{Resource, ResourceType, Subject};
pub use topic::Topic;

/// Id of the cluster in workloads' ids.
pub const CLUSTER_ID: &str = "Kubernetes";
/// DNS domain of services.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Namespace and name of the service that DNS is asked of, by every pod.
pub const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");

/// Unique id of a pod.
#[must_use]
pub fn workload_uid(namespace: &str, name: &str) -> String {
    format!("{CLUSTER_ID}//v1/Pod/{namespace}/{name}")
}

/// `<namespace>/<hostname>` of a service.
#[must_use]
pub fn service_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
}
