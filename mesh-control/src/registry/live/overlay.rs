//! What nodes say of their pods, over what the sources say. A node counts for the pods that are
//! bound to it now.
//!
//! - **Health**, in place of the source's.
//! - **Addresses**, for as long as the source says none: kubelet reports them some time after the
//!   pod's network is made. One that is somebody else's by the sources, or was another pod's
//!   first, is refused and counted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::model::{Health, Workload};
use metrics::counter;

use super::State;
use crate::registry::{Change, Resource, ResourceType, Subject};

/// Addresses that are given in a change, and to whom.
type Claims = HashMap<IpAddr, Arc<str>>;

impl State {
    /// Changes of the sources, with what nodes say over them.
    pub(super) fn over(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut claims = claims(&changes);
        // First those that lose an address, so that it is free for the one that it goes to.
        let mut ceding = self.ceding(&claims);
        ceding.retain(|resource| !changes.iter().any(|change| is_about(change, resource)));
        let ceding = ceding.into_iter().map(Change::Put);
        let all = ceding.chain(changes);
        all.map(|change| self.over_one(change, &mut claims))
            .collect()
    }

    fn over_one(&mut self, change: Change, claims: &mut Claims) -> Change {
        match change {
            Change::Put(resource) => Change::Put(self.with_reports(resource, claims)),
            Change::Remove(kind, name) => {
                if kind == ResourceType::Address {
                    self.overlaid.remove(&name);
                    self.contested.remove(&name);
                }
                Change::Remove(kind, name)
            }
        }
    }

    /// What the sources say of pods that have an address by their nodes' word which the sources
    /// now give to somebody.
    fn ceding(&self, claims: &Claims) -> Vec<Arc<Resource>> {
        let ceding = self.overlaid.values().filter(|source| {
            let served = self.served.resource(ResourceType::Address, &source.name);
            let addresses = served.map_or(&[][..], |served| served.addresses());
            let lent = addresses.iter().filter(|a| !source.addresses().contains(a));
            let mut lost = lent.filter_map(|address| claims.get(address));
            lost.any(|claimant| *claimant != source.name)
        });
        match claims.is_empty() {
            true => Vec::new(),
            false => ceding.cloned().collect(),
        }
    }

    /// What is served of a resource of the sources.
    fn with_reports(&mut self, source: Arc<Resource>, claims: &mut Claims) -> Arc<Resource> {
        let Subject::Workload(workload, _) = &source.subject else {
            return source;
        };
        let (told, contested) = self.told(workload, claims);
        if let Some(address) = contested {
            self.contest(workload, address);
        } else {
            self.contested.remove(&source.name);
        }
        let Some(told) = told else {
            self.overlaid.remove(&source.name);
            return source;
        };
        let given = told.addresses.iter();
        claims.extend(given.map(|address| (*address, source.name.clone())));
        self.overlaid.insert(source.name.clone(), source);
        Arc::new(Resource::workload(told))
    }

    /// A workload as its node has it, where that is another than the source's; and an address
    /// that it is not given.
    fn told(&self, source: &Workload, claims: &Claims) -> (Option<Workload>, Option<IpAddr>) {
        let mut told = None;
        let record = self.nodes.get(&source.node);
        let pod = record.and_then(|record| record.pods.get(&source.uid));
        if pod.is_some_and(|pod| pod.unhealthy) {
            let told = told.get_or_insert_with(|| source.clone());
            told.health = Health::Unhealthy;
        }
        let seen = record.and_then(|record| record.addresses.get(&source.uid));
        let seen = seen.filter(|_| source.addresses.is_empty());
        let anothers = |address: &IpAddr| {
            let owner = claims.get(address).or_else(|| self.served.owner(*address));
            owner.is_some_and(|owner| *owner != source.uid)
        };
        let contested = seen.and_then(|seen| seen.iter().copied().find(anothers));
        if let Some(seen) = seen.filter(|_| contested.is_none()) {
            let told = told.get_or_insert_with(|| source.clone());
            told.addresses.clone_from(seen);
        }
        (told, contested)
    }

    fn contest(&mut self, workload: &Workload, address: IpAddr) {
        if self.contested.insert(workload.uid.clone()) {
            counter!("nodemesh_control_addresses_refused_total").increment(1);
            let (pod, node) = (&workload.uid, &workload.node);
            tracing::warn!(%pod, node, %address, "its node has seen this address in the pod, but it is somebody else's: the pod has no address until the source says one, or this one is free");
        }
    }

    /// What the sources say of a pod of which a node has just spoken, to be served anew if that
    /// is news.
    pub(super) fn anew(&self, uid: &str) -> Option<Change> {
        let served = self.served.resource(ResourceType::Address, uid)?;
        let source = self.overlaid.get(uid).unwrap_or(served);
        let (Subject::Workload(is, _), Subject::Workload(said, _)) =
            (&served.subject, &source.subject)
        else {
            return None;
        };
        let (told, contested) = self.told(said, &Claims::new());
        let told = told.as_ref().unwrap_or(said);
        let news = (told.health, &told.addresses) != (is.health, &is.addresses)
            || contested.is_some() != self.contested.contains(uid);
        news.then(|| Change::Put(source.clone()))
    }

    /// The same of the pods that wait for an address.
    pub(super) fn contested_anew(&self) -> Vec<Change> {
        let contested = self.contested.iter();
        contested.filter_map(|uid| self.anew(uid)).collect()
    }
}

fn claims(changes: &[Change]) -> Claims {
    let put = changes.iter().filter_map(|change| match change {
        Change::Put(resource) => Some(resource),
        Change::Remove(..) => None,
    });
    let addresses = put.flat_map(|resource| {
        let of_it = resource.addresses().iter();
        of_it.map(|address| (*address, resource.name.clone()))
    });
    addresses.collect()
}

fn is_about(change: &Change, resource: &Resource) -> bool {
    match change {
        Change::Put(put) => put.kind() == resource.kind() && put.name == resource.name,
        Change::Remove(kind, name) => *kind == resource.kind() && *name == resource.name,
    }
}
