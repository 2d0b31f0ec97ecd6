//! From sources' objects to the one model of the mesh, and from the model to what discovery
//! sends.

mod live;
mod report;
mod resource;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh_api::convert::policy::PolicyEntry;
use mesh_core::model::{Mesh, Workload};
use mesh_core::policy::{AuthenticationPolicy, AuthorizationPolicy};

pub use live::Registry;
pub use report::TooManyReports;
pub use resource::{Resource, ResourceType};

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

/// A state of the mesh, as it is served.
#[derive(Debug)]
pub struct Directory {
    mesh: Mesh,
    addresses: Index,
    policies: Index,
    version: Arc<str>,
}

/// The resources of one type.
#[derive(Clone, Debug, Default)]
struct Index {
    resources: BTreeMap<Arc<str>, Arc<Resource>>,
    aliases: HashMap<String, Arc<str>>,
}

impl Index {
    fn new(resources: impl Iterator<Item = Resource>) -> Self {
        let mut index = Self::default();
        resources.for_each(|resource| index.insert(resource));
        index
    }

    fn insert(&mut self, resource: Resource) {
        for alias in &resource.aliases {
            self.aliases.insert(alias.clone(), resource.name.clone());
        }
        self.resources
            .insert(resource.name.clone(), Arc::new(resource));
    }
}

impl Directory {
    /// Encodes a state of the mesh.
    #[must_use]
    pub fn new(mesh: Mesh) -> Self {
        let workloads = mesh.workloads().map(|w| Resource::workload(w));
        let services = mesh.services().map(|s| Resource::service(s));
        let addresses = Index::new(workloads.chain(services));
        let authorizations = mesh
            .authorizations()
            .map(|policy| PolicyEntry::Authorization(AuthorizationPolicy::clone(policy)));
        let authentications = mesh
            .authentications()
            .map(|policy| PolicyEntry::Authentication(AuthenticationPolicy::clone(policy)));
        let policies = authorizations.chain(authentications);
        let policies = Index::new(policies.map(|entry| Resource::policy(&entry)));
        Self::of(mesh, addresses, policies)
    }

    /// The same with other contents of some workloads, whose addresses are as before.
    fn with_workloads(&self, workloads: Vec<Workload>) -> Self {
        let mut mesh = self.mesh.clone();
        let mut addresses = self.addresses.clone();
        for workload in workloads {
            addresses.insert(Resource::workload(&workload));
            mesh.insert_workload(workload);
        }
        Self::of(mesh, addresses, self.policies.clone())
    }

    fn of(mesh: Mesh, addresses: Index, policies: Index) -> Self {
        let all = addresses.resources.values();
        let version = resource::version_of_all(all.chain(policies.resources.values()));
        Self {
            mesh,
            addresses,
            policies,
            version,
        }
    }

    /// The model behind it.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Hash of everything in it: the same in every replica and after every restart.
    #[must_use]
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// All resources of a type, by name.
    pub fn resources(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<Resource>> {
        self.index(kind).resources.values()
    }

    /// The resource of this type with this name or alias.
    #[must_use]
    pub fn find(&self, kind: ResourceType, name: &str) -> Option<&Arc<Resource>> {
        let Index { resources, aliases } = self.index(kind);
        let by_name = resources.get(name);
        by_name.or_else(|| resources.get(aliases.get(name)?))
    }

    fn index(&self, kind: ResourceType) -> &Index {
        match kind {
            ResourceType::Address => &self.addresses,
            ResourceType::Policy => &self.policies,
        }
    }
}
