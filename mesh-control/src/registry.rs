//! From sources' objects to the one model of the mesh, and from the model to what discovery
//! sends.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aws_lc_rs::digest;
use mesh_api::convert::workload_to_wire;
use mesh_api::workload as wire;
use mesh_core::model::{Mesh, Service, Workload};
use prost::Message;

/// Id of the cluster in workloads' ids.
pub const CLUSTER_ID: &str = "Kubernetes";
/// DNS domain of services.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

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

/// One resource of discovery.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Workload uid, or `<namespace>/<hostname>`.
    pub name: Arc<str>,
    /// Hash of the content: the same in every replica and after every restart.
    pub version: Arc<str>,
    /// `<network>/<ip>` for each of its addresses.
    pub aliases: Vec<String>,
    /// The encoded [`wire::Address`].
    pub body: Vec<u8>,
}

/// A state of the mesh, as it is served.
#[derive(Debug, Default)]
pub struct Directory {
    mesh: Mesh,
    resources: BTreeMap<Arc<str>, Arc<Resource>>,
    aliases: HashMap<String, Arc<str>>,
}

impl Directory {
    /// Encodes a state of the mesh.
    #[must_use]
    pub fn new(mesh: Mesh) -> Self {
        let workloads = mesh.workloads().map(|w| workload_resource(w));
        let services = mesh.services().map(|s| service_resource(s));
        let resources: BTreeMap<_, _> = workloads
            .chain(services)
            .map(|resource| (resource.name.clone(), Arc::new(resource)))
            .collect();
        let aliases = resources
            .values()
            .flat_map(|r| r.aliases.iter().map(|a| (a.clone(), r.name.clone())))
            .collect();
        Self {
            mesh,
            resources,
            aliases,
        }
    }

    /// The model behind it.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// All resources, by name.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// The resource with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// The resource with this name or alias.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Arc<Resource>> {
        self.get(name)
            .or_else(|| self.resources.get(self.aliases.get(name)?))
    }
}

fn workload_resource(workload: &Workload) -> Resource {
    let message = workload_to_wire(workload, CLUSTER_ID);
    resource(
        workload.uid.clone(),
        &workload.addresses,
        wire::address::Type::Workload(message),
    )
}

fn service_resource(service: &Service) -> Resource {
    resource(
        service.key.clone(),
        &service.addresses,
        wire::address::Type::Service(service.into()),
    )
}

fn resource(name: Arc<str>, addresses: &[std::net::IpAddr], body: wire::address::Type) -> Resource {
    let body = wire::Address { r#type: Some(body) }.encode_to_vec();
    let hash = digest::digest(&digest::SHA256, &body);
    let version: String = hash.as_ref()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    Resource {
        name,
        version: version.into(),
        aliases: addresses.iter().map(|a| format!("/{a}")).collect(),
        body,
    }
}
