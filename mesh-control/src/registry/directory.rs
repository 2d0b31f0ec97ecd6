//! A state of the mesh, encoded for discovery, and what one change of it touches.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_api::convert::security::is_named_by_workloads;
use mesh_core::model::{Mesh, Workload};

use super::resource::{Resource, ResourceType, Subject, address_in_name};
use super::topic::Topic;

/// One change of the mesh.
#[derive(Clone, Debug)]
pub enum Change {
    /// This is new, or different.
    Put(Arc<Resource>),
    /// The resource of this type and name is gone.
    Remove(ResourceType, Arc<str>),
}

/// What a change has done.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The resource's type.
    pub kind: ResourceType,
    /// Its name.
    pub name: Arc<str>,
    /// What it was, unless it is new.
    pub old: Option<Arc<Resource>>,
    /// What it is, unless it is gone.
    pub new: Option<Arc<Resource>>,
}

type Names = BTreeSet<Arc<str>>;

/// A state of the mesh, as it is served.
#[derive(Debug, Default)]
pub struct Directory {
    mesh: Mesh,
    resources: BTreeMap<ResourceType, BTreeMap<Arc<str>, Arc<Resource>>>,
    by_address: BTreeMap<IpAddr, Arc<str>>,
    by_namespace: BTreeMap<String, Names>,
    /// Workloads by the ports at which a service leads to them from another.
    by_target: BTreeMap<u16, Names>,
    /// Sum of the hashes of all resources: the order of changes has no part in it.
    hash: u64,
}

impl Directory {
    /// Encodes a state of the mesh.
    #[must_use]
    pub fn new(mesh: Mesh) -> Self {
        let workloads = mesh.workloads().cloned().map(Resource::workload);
        let services = mesh.services().cloned().map(Resource::service);
        let authorizations = mesh.authorizations().cloned().map(Resource::authorization);
        let authentications = mesh
            .authentications()
            .cloned()
            .map(Resource::authentication);
        let policies = authorizations.chain(authentications);
        // Policies first: workloads name them.
        let all: Vec<_> = policies.chain(workloads).chain(services).collect();
        drop(mesh);
        let mut directory = Self::default();
        for resource in Resource::istio_static() {
            directory.put(Arc::new(resource), &mut Vec::new());
        }
        directory.apply(all.into_iter().map(|r| Change::Put(Arc::new(r))));
        directory
    }

    /// Makes changes, in one step for whoever looks at it between two calls. Returns what is
    /// another now.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Changed> {
        let (removals, puts): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .partition(|change| matches!(change, Change::Remove(..)));
        let mut changed = Vec::new();
        let mut selecting = BTreeSet::new();
        // Removals first: an address may go from one resource to another.
        for change in removals.into_iter().chain(puts) {
            match change {
                Change::Put(resource) => self.put(resource, &mut changed),
                Change::Remove(kind, name) => self.take_out(kind, name, &mut changed),
            }
        }
        for one in &changed {
            for side in [&one.old, &one.new].into_iter().flatten() {
                if let Subject::Authorization(policy, _) = &side.subject
                    && is_named_by_workloads(policy)
                {
                    selecting.insert(policy.namespace().to_owned());
                }
            }
        }
        for namespace in selecting {
            self.name_policies_anew(&namespace, &mut changed);
        }
        changed
    }

    /// Policies that select workloads one by one are named by them.
    fn name_policies_anew(&mut self, namespace: &str, changed: &mut Vec<Changed>) {
        let of_it = self.by_namespace.get(namespace).into_iter().flatten();
        let named: Vec<Arc<Resource>> = of_it
            .filter_map(|name| self.resource(ResourceType::Address, name).cloned())
            .collect();
        for resource in named {
            self.put(resource, changed);
        }
    }

    /// The workload with the policies that it is to name.
    fn naming_policies(&self, resource: Arc<Resource>) -> Arc<Resource> {
        let Subject::Workload(workload, named) = &resource.subject else {
            return resource;
        };
        let (policies, _) = self.mesh.policies_for(workload);
        let policies = policies
            .iter()
            .filter(|policy| is_named_by_workloads(policy));
        let policies: Vec<String> = policies.map(|policy| policy.key.to_string()).collect();
        match policies == *named {
            true => resource,
            false => Arc::new(Resource::workload_with(workload.clone(), policies)),
        }
    }

    fn take_out(&mut self, kind: ResourceType, name: Arc<str>, changed: &mut Vec<Changed>) {
        let Some(old) = self.remove(kind, &name) else {
            return;
        };
        if let Subject::Authorization(policy, _) = &old.subject {
            self.take_out(ResourceType::Istio, policy.key.clone(), changed);
        }
        changed.push(Changed {
            kind,
            name,
            old: Some(old),
            new: None,
        });
    }

    fn put(&mut self, resource: Arc<Resource>, changed: &mut Vec<Changed>) {
        let resource = self.naming_policies(resource);
        let (kind, name) = (resource.kind(), resource.name.clone());
        let known = self.resource(kind, &name);
        if known.is_some_and(|known| known.version == resource.version) {
            return;
        }
        let old = self.remove(kind, &name);
        match &resource.subject {
            Subject::Workload(workload, _) => {
                self.mesh.insert_workload(workload.clone());
                let namespace = workload.identity.namespace().to_owned();
                add(&mut self.by_namespace, namespace, &name);
                for (_, port) in workload.translations() {
                    add(&mut self.by_target, port, &name);
                }
            }
            Subject::Service(service) => {
                self.mesh.insert_service(service.clone());
                add(&mut self.by_namespace, service.namespace.clone(), &name);
            }
            Subject::Authorization(policy, _) => {
                self.mesh.insert_authorization(policy.clone());
                match Resource::istio(policy) {
                    Some(told) => self.put(Arc::new(told), changed),
                    None => self.take_out(ResourceType::Istio, policy.key.clone(), changed),
                }
            }
            Subject::Authentication(policy) => {
                self.mesh.insert_authentication(policy.clone());
            }
            Subject::Istio(_) => {}
        }
        for address in resource.addresses() {
            self.by_address.insert(*address, name.clone());
        }
        self.hash = self.hash.wrapping_add(resource.hash());
        let of_kind = self.resources.entry(kind).or_default();
        of_kind.insert(name.clone(), resource.clone());
        changed.push(Changed {
            kind,
            name,
            old,
            new: Some(resource),
        });
    }

    fn remove(&mut self, kind: ResourceType, name: &str) -> Option<Arc<Resource>> {
        let old = self.resources.get_mut(&kind)?.remove(name)?;
        self.hash = self.hash.wrapping_sub(old.hash());
        for address in old.addresses() {
            // One that has meanwhile gone to another owner stays with that owner.
            if self.by_address.get(address) == Some(&old.name) {
                self.by_address.remove(address);
            }
        }
        match &old.subject {
            Subject::Workload(workload, _) => {
                self.mesh.remove_workload(name);
                take(&mut self.by_namespace, workload.identity.namespace(), name);
                for (_, port) in workload.translations() {
                    take(&mut self.by_target, &port, name);
                }
            }
            Subject::Service(service) => {
                self.mesh.remove_service(name);
                take(&mut self.by_namespace, &service.namespace, name);
            }
            Subject::Authorization(policy, _) => {
                self.mesh.remove_authorization(&policy.key);
            }
            Subject::Authentication(policy) => {
                self.mesh.remove_authentication(&policy.key);
            }
            Subject::Istio(_) => {}
        }
        Some(old)
    }

    /// The changes that make this state of `wanted`.
    #[must_use]
    pub fn changes_to(&self, wanted: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for kind in ResourceType::SOURCES {
            let gone = self.resources(kind).map(|resource| &resource.name);
            let gone = gone.filter(|name| wanted.resource(kind, name).is_none());
            changes.extend(gone.map(|name| Change::Remove(kind, name.clone())));
            let differs = |resource: &&Arc<Resource>| {
                let known = self.resource(kind, &resource.name);
                known.is_none_or(|known| known.version != resource.version)
            };
            let put = wanted.resources(kind).filter(differs);
            changes.extend(put.cloned().map(Change::Put));
        }
        changes
    }

    /// The model behind it.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Hash of everything in it: the same in every replica and after every restart.
    #[must_use]
    pub fn version(&self) -> Arc<str> {
        format!("{:016x}", self.hash).into()
    }

    /// All resources of a type, by name.
    pub fn resources(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources
            .get(&kind)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// The resource of this type with this name.
    #[must_use]
    pub fn resource(&self, kind: ResourceType, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(&kind)?.get(name)
    }

    /// The resource of this type with this name or alias.
    #[must_use]
    pub fn find(&self, kind: ResourceType, name: &str) -> Option<&Arc<Resource>> {
        match (kind, address_in_name(name)) {
            (ResourceType::Address, Some(address)) => {
                self.resource(kind, self.by_address.get(&address)?)
            }
            _ => self.resource(kind, name),
        }
    }

    /// Name of the workload or service that has this address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.by_address.get(&address)
    }

    /// The workloads of a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let names = self.by_namespace.get(namespace).into_iter().flatten();
        names.filter_map(|name| self.mesh.workload(name))
    }

    /// The resources of a type that are about a topic.
    pub(crate) fn about<'a>(
        &'a self,
        kind: ResourceType,
        topic: &'a Topic,
    ) -> Box<dyn Iterator<Item = &'a Arc<Resource>> + 'a> {
        match topic {
            Topic::All(of) if *of == kind => return Box::new(self.resources(kind)),
            Topic::Name(of, name) if *of == kind => {
                return Box::new(self.resource(kind, name).into_iter());
            }
            _ if kind != ResourceType::Address => return Box::new(std::iter::empty()),
            _ => {}
        }
        let named = |names: Option<&'a Names>| {
            let names = names.into_iter().flatten();
            names.filter_map(move |name| self.resource(kind, name))
        };
        match topic {
            Topic::Address(address) => {
                let name = self.by_address.get(address);
                Box::new(name.and_then(|name| self.resource(kind, name)).into_iter())
            }
            Topic::Node(node) => {
                let of_it = self.mesh.on_node(node);
                Box::new(of_it.filter_map(move |w| self.resource(kind, &w.uid)))
            }
            Topic::Namespace(namespace) => Box::new(named(self.by_namespace.get(&**namespace))),
            Topic::Target(port) => Box::new(named(self.by_target.get(port))),
            Topic::Member(service) => {
                let members = self.mesh.members(service);
                Box::new(members.filter_map(move |w| self.resource(kind, &w.uid)))
            }
            Topic::Port(port) => {
                let services = self.mesh.services().filter(|s| s.ports.contains(port));
                Box::new(services.filter_map(move |s| self.resource(kind, &s.key)))
            }
            Topic::Block(block) | Topic::Virtual(block) => {
                let names = self.by_address.range(ends(*block)).map(|(_, name)| name);
                let found = names.filter_map(move |name| self.resource(kind, name));
                Box::new(found.filter(move |resource| topic.covers(resource)))
            }
            Topic::All(_) | Topic::Name(..) | Topic::Policies(_) => Box::new(std::iter::empty()),
        }
    }
}

/// The addresses of a block, in order.
fn ends(block: IpNet) -> std::ops::RangeInclusive<IpAddr> {
    block.network()..=block.broadcast()
}

fn add<K: Ord>(index: &mut BTreeMap<K, Names>, key: K, name: &Arc<str>) {
    index.entry(key).or_default().insert(name.clone());
}

fn take<K, Q>(index: &mut BTreeMap<K, Names>, key: &Q, name: &str)
where
    K: Ord + Borrow<Q>,
    Q: Ord + ?Sized,
{
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
