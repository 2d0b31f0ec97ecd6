//! The client's side of delta xDS, without I/O: what to send on a new stream, and what
//! responses do to the resources that are held.
//!
//! Responses are acknowledged one by one and take effect together: a change of the mesh ends
//! with the response that says that no more belong to it, and on a new stream not before every
//! type has answered. Nobody sees half a change, in the model or on disk.
//!
//! A node subscribes to what it takes to serve its own pods, and by address to whom they talk to.

mod resource;
mod unreadable;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use mesh_api::{ADDRESS_TYPE_URL, OWN_NAME};
use mesh_core::identity::TrustDomain;

pub(super) use resource::Change;
use resource::{Kind, Read, ResourceType, put, put_stand_in, read, removal};

/// gRPC's INVALID_ARGUMENT, as a NACK carries it.
const INVALID_ARGUMENT: i32 = 3;
/// Most faults that a NACK spells out.
const FAULTS_TOLD: usize = 8;
/// Type of what is kept over a restart: resources of all types.
const SNAPSHOT_TYPE: &str = "nodemesh.dev/discovery-snapshot";

/// A resource as it was taken, to be kept over restarts.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    version: String,
    resource: Resource,
    kind: Kind,
}

/// What was taken and is not in effect yet.
#[derive(Clone, Debug)]
enum Staged {
    Put(Resource, Box<Read>),
    Remove(String),
    /// A policy that can't be read.
    Unreadable(Resource),
}

/// What takes effect at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Commit {
    /// Version of the whole mesh that control gives.
    pub(super) version: String,
    /// Changes to the model, in order.
    pub(super) changes: Vec<Change>,
    /// Addresses that control has spoken of for the first time: where the model has nobody
    /// there, nobody is.
    pub(super) answered: Vec<IpAddr>,
}

/// What one response did.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Applied {
    /// ACK or NACK.
    pub(super) request: DeltaDiscoveryRequest,
    /// What takes effect; `None` while more is to come.
    pub(super) commit: Option<Commit>,
    /// What was not taken, and why.
    pub(super) faults: Vec<String>,
}

type Name = (ResourceType, String);

/// The resources that this node holds.
#[derive(Clone, Debug)]
pub(super) struct XdsState {
    trust_domain: TrustDomain,
    held: BTreeMap<Name, Held>,
    /// Addresses that are asked about, and whether control has spoken of them.
    addresses: BTreeMap<IpAddr, bool>,
    staged: Vec<(ResourceType, Staged)>,
    /// Addresses that responses which are not in effect yet have spoken of.
    spoken_of: BTreeSet<IpAddr>,
    /// Types that have answered on this stream.
    answered: BTreeSet<ResourceType>,
    /// Policies whose present version can't be read.
    unreadable: BTreeSet<Name>,
    version: String,
}

impl XdsState {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            held: BTreeMap::new(),
            addresses: BTreeMap::new(),
            staged: Vec::new(),
            spoken_of: BTreeSet::new(),
            answered: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            version: String::new(),
        }
    }

    /// First requests of a stream: subscribe to what is needed and asked about, and tell what is
    /// held already. What an earlier stream left unfinished is forgotten; control sends it again.
    pub(super) fn subscribe(&mut self, node: &str) -> Vec<DeltaDiscoveryRequest> {
        self.staged.clear();
        self.answered.clear();
        // The first answer of its type is to all of them.
        self.spoken_of = self.addresses.keys().copied().collect();
        let names = |kind| match kind {
            ResourceType::Address => self.addresses.keys().map(name_of).collect(),
            ResourceType::Policy => Vec::new(),
        };
        let request = |kind: ResourceType| DeltaDiscoveryRequest {
            node: Some(Node {
                id: node.to_owned(),
            }),
            type_url: kind.url().to_owned(),
            resource_names_subscribe: [vec![OWN_NAME.to_owned()], names(kind)].concat(),
            initial_resource_versions: self.versions(kind),
            ..DeltaDiscoveryRequest::default()
        };
        ResourceType::ALL.map(request).into()
    }

    /// Asks about addresses, and no more about others; what to send on a stream that has been
    /// begun. `None` where that changes nothing.
    pub(super) fn ask(&mut self, new: &[IpAddr], old: &[IpAddr]) -> Option<DeltaDiscoveryRequest> {
        let mut request = DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE_URL.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        for address in old {
            if self.addresses.remove(address).is_some() {
                self.spoken_of.remove(address);
                let names = &mut request.resource_names_unsubscribe;
                names.push(name_of(address));
            }
        }
        for address in new {
            if !self.addresses.contains_key(address) {
                self.addresses.insert(*address, false);
                request.resource_names_subscribe.push(name_of(address));
            }
        }
        let nothing = request.resource_names_subscribe.is_empty()
            && request.resource_names_unsubscribe.is_empty();
        (!nothing).then_some(request)
    }

    /// What is held, for control to send what is another, and to tell what is gone. No version is
    /// claimed of what can't be read, so that it is sent again: this agent may be another one by
    /// then.
    fn versions(&self, kind: ResourceType) -> std::collections::HashMap<String, String> {
        let of_kind = self.held.iter().filter(|((k, _), _)| *k == kind);
        let version = |((_, name), held): (&Name, &Held)| {
            let version = match held.kind {
                Kind::StandIn => String::new(),
                _ => held.version.clone(),
            };
            (name.clone(), version)
        };
        of_kind.map(version).collect()
    }

    /// Takes what is right in a response. What isn't is refused with the reason, and leaves
    /// what was held under that name as it is.
    pub(super) fn apply(&mut self, response: DeltaDiscoveryResponse) -> Applied {
        let mut faults = Vec::new();
        match ResourceType::of(&response.type_url) {
            Some(kind) => {
                self.answered.insert(kind);
                if kind == ResourceType::Address {
                    self.hear_of(&response);
                }
                // Removals first: an address may go from one resource to another.
                let removed = response.removed_resources.into_iter();
                self.staged
                    .extend(removed.map(|name| (kind, Staged::Remove(name))));
                for resource in response.resources {
                    faults.extend(self.stage(kind, resource).err());
                }
            }
            None => faults.push(format!("unknown type {:?}", response.type_url)),
        }
        let complete = !response.more && self.answered.len() == ResourceType::ALL.len();
        let commit = complete.then(|| self.commit(response.system_version_info));
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
            commit,
            faults,
        }
    }

    /// Notes the addresses that a response is about: as aliases of resources, or as names that
    /// lead nowhere.
    fn hear_of(&mut self, response: &DeltaDiscoveryResponse) {
        let aliases = response.resources.iter().flat_map(|r| &r.aliases);
        let names = aliases.chain(&response.removed_resources);
        let addresses = names.filter_map(|name| address_in(name));
        self.spoken_of.extend(addresses);
    }

    fn stage(&mut self, kind: ResourceType, resource: Resource) -> Result<(), String> {
        match read(&resource, kind, &self.trust_domain) {
            Ok(read) => {
                self.staged
                    .push((kind, Staged::Put(resource, Box::new(read))));
                Ok(())
            }
            Err(why) => {
                let fault = format!("{:?}: {why}", resource.name);
                if kind == ResourceType::Policy {
                    self.staged.push((kind, Staged::Unreadable(resource)));
                }
                Err(fault)
            }
        }
    }

    fn commit(&mut self, version: String) -> Commit {
        self.version.clone_from(&version);
        let mut changes = Vec::new();
        for (kind, staged) in std::mem::take(&mut self.staged) {
            match staged {
                Staged::Put(resource, read) => changes.extend(self.hold(kind, resource, *read)),
                Staged::Remove(name) => {
                    let key = (kind, name);
                    self.unreadable.remove(&key);
                    if let Some(held) = self.held.remove(&key) {
                        changes.extend(removal(held.kind, &key.1));
                    }
                }
                Staged::Unreadable(resource) => {
                    changes.extend(self.hold_unreadable(kind, resource));
                }
            }
        }
        let mut answered = Vec::new();
        for address in std::mem::take(&mut self.spoken_of) {
            if let Some(known) = self.addresses.get_mut(&address)
                && !std::mem::replace(known, true)
            {
                answered.push(address);
            }
        }
        Commit {
            version,
            changes,
            answered,
        }
    }

    fn hold(&mut self, kind: ResourceType, resource: Resource, read: Read) -> Vec<Change> {
        let name = (kind, resource.name.clone());
        let held = Held {
            version: resource.version.clone(),
            resource,
            kind: read.kind(),
        };
        self.unreadable.remove(&name);
        let before = self.held.insert(name.clone(), held).map(|held| held.kind);
        let turned = before.filter(|before| *before != read.kind());
        let mut changes = turned.map_or_else(Vec::new, |before| removal(before, &name.1));
        changes.push(put(read));
        changes
    }

    fn hold_unreadable(&mut self, kind: ResourceType, resource: Resource) -> Vec<Change> {
        let name = (kind, resource.name.clone());
        self.unreadable.insert(name.clone());
        let before = self.held.get(&name).map(|held| held.kind);
        if before.is_some_and(|kind| kind != Kind::StandIn) {
            return Vec::new();
        }
        let mut changes = removal(Kind::StandIn, &name.1);
        changes.extend(put_stand_in(unreadable::stand_in(&resource)));
        let held = Held {
            version: resource.version.clone(),
            resource,
            kind: Kind::StandIn,
        };
        self.held.insert(name, held);
        changes
    }

    /// Names of the policies whose present version can't be read.
    pub(super) fn unreadable(&self) -> Vec<String> {
        self.unreadable
            .iter()
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// Everything in effect, as one response: what is kept over a restart.
    pub(super) fn snapshot(&self) -> DeltaDiscoveryResponse {
        let resources = self.held.values().map(|held| held.resource.clone());
        let answered = self.addresses.iter().filter(|(_, known)| **known);
        DeltaDiscoveryResponse {
            type_url: SNAPSHOT_TYPE.to_owned(),
            system_version_info: self.version.clone(),
            resources: resources.collect(),
            // Addresses that control has spoken of: nobody else is there.
            removed_resources: answered.map(|(address, _)| name_of(address)).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    /// Takes up a snapshot, with the commit that makes it the model and what of it can't be
    /// read.
    ///
    /// # Errors
    /// If it is no snapshot of this kind: one without policies must not pass for a mesh that
    /// has none.
    pub(super) fn restore(
        trust_domain: TrustDomain,
        snapshot: DeltaDiscoveryResponse,
    ) -> Result<(Self, Commit, Vec<String>), String> {
        if snapshot.type_url != SNAPSHOT_TYPE {
            return Err(format!("it is of type {:?}", snapshot.type_url));
        }
        let mut state = Self::new(trust_domain);
        let mut faults = Vec::new();
        let names = snapshot.removed_resources.iter();
        for address in names.filter_map(|name| address_in(name)) {
            state.addresses.insert(address, false);
            state.spoken_of.insert(address);
        }
        for resource in snapshot.resources {
            // A body of a type that is not known here can only be that of a policy that can't be
            // read: what stands in for it must not be lost.
            let url = resource.resource.as_ref().map(|any| any.type_url.as_str());
            let kind = url.and_then(ResourceType::of);
            let kind = kind.unwrap_or(ResourceType::Policy);
            faults.extend(state.stage(kind, resource).err());
        }
        let commit = state.commit(snapshot.system_version_info);
        Ok((state, commit, faults))
    }
}

/// `<network>/<ip>`; the mesh has one network, without a name.
fn name_of(address: &IpAddr) -> String {
    format!("/{address}")
}

fn address_in(name: &str) -> Option<IpAddr> {
    name.strip_prefix('/')?.parse().ok()
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
mod tests;
