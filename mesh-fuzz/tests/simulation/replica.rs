//! A control component: the real registry, and where it is in what the sources have said.

use std::sync::Arc;
use std::time::Instant;

use mesh_api::ads::DeltaDiscoveryRequest;
use mesh_api::node::{NodeReport, PodReport};
use mesh_control::registry::{Directory, Registry, ResourceType};
use mesh_control::xds::subscriber::Subscriber;
use mesh_core::model::Mesh;

/// One of the control components.
pub(crate) struct Replica {
    registry: Arc<Registry>,
    /// Place in the history of the state that it serves.
    pub(crate) at: usize,
}

impl Replica {
    pub(crate) fn new(mesh: &Mesh, at: usize) -> Self {
        Self {
            registry: Arc::new(Registry::new(Directory::new(mesh.clone()))),
            at,
        }
    }

    pub(crate) fn mesh(&self) -> Mesh {
        self.registry.current().mesh().clone()
    }

    /// Control's end of a stream.
    pub(crate) fn subscriber(&self, node: &str) -> Subscriber {
        Subscriber::new(self.registry.clone(), node)
    }

    /// The sources say something else.
    pub(crate) fn take(&mut self, mesh: &Mesh, at: usize, now: Instant) {
        self.registry
            .set_sources(&Directory::new(mesh.clone()), now);
        self.at = at;
    }

    /// A node says which of its pods are unwell. Returns whether that was taken.
    pub(crate) fn report(&self, node: &str, unwell: &[(&str, &str)], now: Instant) -> bool {
        let pods = unwell.iter().map(|(namespace, name)| PodReport {
            namespace: (*namespace).to_owned(),
            name: (*name).to_owned(),
            unhealthy: true,
            ..PodReport::default()
        });
        let report = NodeReport {
            pods: pods.collect(),
            ..NodeReport::default()
        };
        self.registry.report(node, &report, now).is_ok()
    }

    /// [`crate::bugs::Bug::ResumesByName`]: whatever version a node names, it is the present one.
    pub(crate) fn claim_present(&self, request: &mut DeltaDiscoveryRequest) {
        let directory = self.registry.current();
        for (name, version) in &mut request.initial_resource_versions {
            let mut kinds = ResourceType::ALL.into_iter();
            let found = kinds.find_map(|kind| directory.find(kind, name));
            if let Some(resource) = found {
                *version = resource.version.to_string();
            }
        }
    }
}
