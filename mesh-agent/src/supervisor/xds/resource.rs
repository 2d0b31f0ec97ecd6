//! One resource of discovery: read, and turned into changes to the model.

use mesh_api::ads::Resource;
use mesh_api::convert::Entry;
use mesh_api::convert::policy::PolicyEntry;
use mesh_api::policy::Policy;
use mesh_api::workload::Address;
use mesh_api::{ADDRESS_TYPE_URL, POLICY_TYPE_URL};
use mesh_core::identity::TrustDomain;
use mesh_core::model::{Mesh, Service, Workload};
use prost::Message;

use super::unreadable::{self, StandIn};
use crate::supervisor::discovery::Touched;

/// A type of resource, each with a subscription of its own on the one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::supervisor) enum ResourceType {
    /// Workloads and services.
    Address,
    /// Authorization policies and authentication scopes.
    Policy,
}

impl ResourceType {
    pub(super) const ALL: [Self; 2] = [Self::Address, Self::Policy];

    pub(super) fn url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE_URL,
            Self::Policy => POLICY_TYPE_URL,
        }
    }

    pub(super) fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// What a resource is in the model, as far as its removal needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Workload,
    Service,
    Authorization,
    Authentication,
    /// What stands in for a policy that can't be read.
    StandIn,
}

/// A resource that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Read {
    Address(Box<Entry>),
    Policy(PolicyEntry),
}

impl Read {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Address(entry) => match **entry {
                Entry::Workload(_) => Kind::Workload,
                Entry::Service(_) => Kind::Service,
            },
            Self::Policy(PolicyEntry::Authorization(_)) => Kind::Authorization,
            Self::Policy(PolicyEntry::Authentication(_)) => Kind::Authentication,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Address(entry) => match &**entry {
                Entry::Workload(workload) => workload.uid.to_string(),
                Entry::Service(service) => service.key.to_string(),
            },
            Self::Policy(policy) => policy.resource_name(),
        }
    }
}

/// One change to the model.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::supervisor) enum Change {
    /// A workload or service is new or different.
    Put(Box<Entry>),
    /// A policy is new or different.
    PutPolicy(Box<PolicyEntry>),
    /// A workload is gone.
    RemoveWorkload(String),
    /// A service is gone.
    RemoveService(String),
    /// The authorization policy with this key is gone.
    RemoveAuthorization(String),
    /// The authentication scope with this key is gone.
    RemoveAuthentication(String),
}

impl Change {
    /// Makes the change.
    pub(in crate::supervisor) fn apply(self, mesh: &mut Mesh) -> Touched {
        let policies = |policies| Touched {
            policies,
            places: false,
        };
        let places = |places| Touched {
            policies: false,
            places,
        };
        match self {
            Self::Put(entry) => match *entry {
                Entry::Workload(workload) => places(put_workload(mesh, workload)),
                Entry::Service(service) => places(put_service(mesh, service)),
            },
            Self::PutPolicy(entry) => match *entry {
                PolicyEntry::Authorization(policy) => policies(mesh.insert_authorization(policy)),
                PolicyEntry::Authentication(policy) => policies(mesh.insert_authentication(policy)),
            },
            Self::RemoveWorkload(uid) => places(mesh.remove_workload(&uid).is_some()),
            Self::RemoveService(key) => places(mesh.remove_service(&key).is_some()),
            Self::RemoveAuthorization(key) => policies(mesh.remove_authorization(&key).is_some()),
            Self::RemoveAuthentication(key) => policies(mesh.remove_authentication(&key).is_some()),
        }
    }
}

/// Whether more of it than health, locality and its worker's budget is another now.
fn put_workload(mesh: &mut Mesh, workload: Workload) -> bool {
    let same = mesh.workload(&workload.uid).is_some_and(|old| {
        workload
            == Workload {
                health: workload.health,
                locality: workload.locality.clone(),
                budget: workload.budget,
                ..(**old).clone()
            }
    });
    mesh.insert_workload(workload);
    !same
}

/// Whether more of it than how endpoints are chosen is another now.
fn put_service(mesh: &mut Mesh, service: Service) -> bool {
    let same = mesh.service(&service.key).is_some_and(|old| {
        service
            == Service {
                traffic: service.traffic.clone(),
                ..(**old).clone()
            }
    });
    mesh.insert_service(service);
    !same
}

/// Puts in what was read.
pub(super) fn put(read: Read) -> Change {
    match read {
        Read::Address(entry) => Change::Put(entry),
        Read::Policy(entry) => Change::PutPolicy(Box::new(entry)),
    }
}

/// Puts in what stands in for a policy that can't be read.
pub(super) fn put_stand_in(stand_in: StandIn) -> Vec<Change> {
    let put = |entry| Change::PutPolicy(Box::new(entry));
    stand_in.into_iter().map(put).collect()
}

/// Takes out what is held under a resource's name.
pub(super) fn removal(kind: Kind, name: &str) -> Vec<Change> {
    // Policies have their type before their key.
    let key = || name.split_once('/').map_or("", |(_, key)| key).to_owned();
    match kind {
        Kind::Workload => vec![Change::RemoveWorkload(name.to_owned())],
        Kind::Service => vec![Change::RemoveService(name.to_owned())],
        Kind::Authorization => vec![Change::RemoveAuthorization(key())],
        Kind::Authentication => vec![Change::RemoveAuthentication(key())],
        Kind::StandIn => unreadable::removal(name),
    }
}

/// Reads a resource that came under type `expected`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(
    resource: &Resource,
    expected: ResourceType,
    trust_domain: &TrustDomain,
) -> Result<Read, String> {
    let any = resource.resource.as_ref().ok_or("it has no body")?;
    if any.type_url != expected.url() {
        return Err(format!("unknown type {:?}", any.type_url));
    }
    let bytes = any.value.as_slice();
    let read = match expected {
        ResourceType::Address => {
            let address = Address::decode(bytes).map_err(|e| e.to_string())?;
            let entry = Entry::from_wire(&address, trust_domain).map_err(|e| e.to_string())?;
            Read::Address(Box::new(entry))
        }
        ResourceType::Policy => {
            let policy = Policy::decode(bytes).map_err(|e| e.to_string())?;
            Read::Policy(PolicyEntry::from_wire(&policy).map_err(|e| e.to_string())?)
        }
    };
    let own_name = read.name();
    if own_name != resource.name {
        return Err(format!("its own name is {own_name:?}"));
    }
    Ok(read)
}
