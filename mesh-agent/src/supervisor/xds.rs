//! The client's side of delta xDS, without I/O: what to send on a new stream, and what a
//! response does to the resources that are held.

use std::collections::BTreeMap;

use mesh_api::ADDRESS_TYPE_URL;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use mesh_api::convert::Entry;
use mesh_api::workload::Address;
use mesh_core::identity::TrustDomain;
use mesh_core::model::Mesh;
use prost::Message;

/// gRPC's INVALID_ARGUMENT, as a NACK carries it.
const INVALID_ARGUMENT: i32 = 3;
/// Most faults that a NACK spells out.
const FAULTS_TOLD: usize = 8;

/// A resource as it was taken, to be kept over restarts.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    version: String,
    resource: Resource,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Workload,
    Service,
}

/// What one response did.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Applied {
    /// ACK or NACK.
    pub(super) request: DeltaDiscoveryRequest,
    /// Changes to the model, in order.
    pub(super) changes: Vec<Change>,
    /// What was not taken, and why.
    pub(super) faults: Vec<String>,
}

/// One change to the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// A workload or service is new or different.
    Put(Box<Entry>),
    /// A workload is gone.
    RemoveWorkload(String),
    /// A service is gone.
    RemoveService(String),
}

impl Change {
    /// Makes the change.
    pub(super) fn apply(self, mesh: &mut Mesh) {
        match self {
            Self::Put(entry) => match *entry {
                Entry::Workload(workload) => drop(mesh.insert_workload(workload)),
                Entry::Service(service) => drop(mesh.insert_service(service)),
            },
            Self::RemoveWorkload(uid) => drop(mesh.remove_workload(&uid)),
            Self::RemoveService(key) => drop(mesh.remove_service(&key)),
        }
    }
}

/// The resources that this node holds.
#[derive(Clone, Debug)]
pub(super) struct XdsState {
    trust_domain: TrustDomain,
    held: BTreeMap<String, Held>,
}

impl XdsState {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            held: BTreeMap::new(),
        }
    }

    /// First request of a stream: subscribes to everything, and tells what is held already.
    pub(super) fn subscribe(&self, node: &str) -> DeltaDiscoveryRequest {
        let versions = self
            .held
            .iter()
            .map(|(n, held)| (n.clone(), held.version.clone()));
        DeltaDiscoveryRequest {
            node: Some(Node {
                id: node.to_owned(),
            }),
            type_url: ADDRESS_TYPE_URL.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: versions.collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes what is right in a response. What isn't is refused with the reason, and leaves
    /// what was held under that name as it is.
    pub(super) fn apply(&mut self, response: DeltaDiscoveryResponse) -> Applied {
        let mut changes = Vec::new();
        let mut faults = Vec::new();
        if response.type_url == ADDRESS_TYPE_URL {
            // Removals first: an address may go from one resource to another.
            for name in response.removed_resources {
                match self.held.remove(&name).map(|held| held.kind) {
                    Some(Kind::Workload) => changes.push(Change::RemoveWorkload(name)),
                    Some(Kind::Service) => changes.push(Change::RemoveService(name)),
                    None => {}
                }
            }
            for resource in response.resources {
                match self.read(&resource) {
                    Ok(entry) => changes.extend(self.hold(resource, entry)),
                    Err(why) => faults.push(format!("{:?}: {why}", resource.name)),
                }
            }
        } else {
            faults.push(format!("unknown type {:?}", response.type_url));
        }
        let error_detail = (!faults.is_empty()).then(|| Status {
            code: INVALID_ARGUMENT,
            message: told(&faults),
        });
        Applied {
            request: DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                error_detail,
                ..DeltaDiscoveryRequest::default()
            },
            changes,
            faults,
        }
    }

    fn hold(&mut self, resource: Resource, entry: Entry) -> Vec<Change> {
        let kind = match entry {
            Entry::Workload(_) => Kind::Workload,
            Entry::Service(_) => Kind::Service,
        };
        let name = resource.name.clone();
        let held = Held {
            version: resource.version.clone(),
            resource,
            kind,
        };
        let before = self.held.insert(name.clone(), held).map(|held| held.kind);
        let turned = match before {
            Some(Kind::Workload) if kind != Kind::Workload => Some(Change::RemoveWorkload(name)),
            Some(Kind::Service) if kind != Kind::Service => Some(Change::RemoveService(name)),
            _ => None,
        };
        turned
            .into_iter()
            .chain([Change::Put(Box::new(entry))])
            .collect()
    }

    fn read(&self, resource: &Resource) -> Result<Entry, String> {
        let any = resource.resource.as_ref().ok_or("it has no body")?;
        if any.type_url != ADDRESS_TYPE_URL {
            return Err(format!("unknown type {:?}", any.type_url));
        }
        let address = Address::decode(any.value.as_slice()).map_err(|e| e.to_string())?;
        let entry = Entry::from_wire(&address, &self.trust_domain).map_err(|e| e.to_string())?;
        let own_name = match &entry {
            Entry::Workload(workload) => &workload.uid,
            Entry::Service(service) => &service.key,
        };
        if **own_name != *resource.name {
            return Err(format!("its own name is {own_name:?}"));
        }
        Ok(entry)
    }

    /// Everything held, as one response: what is kept over a restart.
    pub(super) fn snapshot(&self) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: ADDRESS_TYPE_URL.to_owned(),
            resources: self
                .held
                .values()
                .map(|held| held.resource.clone())
                .collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}

fn told(faults: &[String]) -> String {
    let mut text = faults
        .iter()
        .take(FAULTS_TOLD)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    if faults.len() > FAULTS_TOLD {
        text.push_str(&format!("; and {} more", faults.len() - FAULTS_TOLD));
    }
    text
}

#[cfg(test)]
#[path = "xds_tests.rs"]
mod tests;
