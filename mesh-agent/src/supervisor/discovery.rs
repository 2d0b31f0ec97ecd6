//! What discovery says, shared by the pods' tasks: one view, and a signal for its changes.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use mesh_core::model::{Locality, Mesh, Service, Workload};
use tokio::sync::watch;
use tokio::time::Instant;

use super::asked::{Asked, Asking};

/// Namespace and name of the service that DNS is asked of.
const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");

/// What discovery says at one time, with what follows from it for this node.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The model: this node's part of the mesh.
    pub(super) mesh: Mesh,
    /// Addresses of which control has said who is there, if anybody: where the model has nobody
    /// at one of these, nobody is there. Of others that can't be said.
    pub(super) answered: HashSet<IpAddr>,
    /// Version of the mesh, as control gives it.
    pub(super) version: Arc<str>,
    /// Grows whenever any policy changes.
    pub(super) policies: u64,
    /// Grows whenever anything changes of who is where: all of workloads and services but
    /// health, localities and how endpoints are chosen.
    pub(super) places: u64,
    /// This node's name.
    pub(super) node: String,
    /// Where this node stands: every workload on it says so.
    pub(super) locality: Locality,
    /// Addresses of the cluster's DNS: those that the operator gave, then the service's and its
    /// endpoints'. Shared, so that equal ones are seen at a glance.
    pub(super) resolvers: Arc<[IpAddr]>,
}

impl View {
    fn derive(&mut self, configured: &[IpAddr]) {
        let known = |w: &&Arc<Workload>| w.locality != Locality::default();
        let here = self.mesh.on_node(&self.node).find(known);
        self.locality = here.map(|w| w.locality.clone()).unwrap_or_default();
        let resolvers = resolvers(&self.mesh, configured);
        if *self.resolvers != *resolvers {
            self.resolvers = resolvers.into();
        }
    }
}

fn resolvers(mesh: &Mesh, configured: &[IpAddr]) -> Vec<IpAddr> {
    let mut found = configured.to_vec();
    let is_dns = |s: &&Arc<Service>| (s.namespace.as_str(), s.name.as_str()) == DNS_SERVICE;
    for service in mesh.services().filter(is_dns) {
        found.extend(&service.addresses);
        let endpoints = mesh.members(&service.key);
        found.extend(endpoints.flat_map(|workload| &workload.addresses));
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    found
}

/// What a change was about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// Some policy is another.
    pub(super) policies: bool,
    /// Somebody is somewhere else, or somebody else; see [`View::places`].
    pub(super) places: bool,
}

/// The view and its changes.
#[derive(Debug)]
pub(super) struct Discovery {
    view: RwLock<View>,
    asked: Arc<Asked>,
    resolvers: Vec<IpAddr>,
    /// Control tells of the resolvers, whoever uses them.
    _resolvers: Vec<Asking>,
    /// 0 until discovery is known; grows with every change.
    changes: watch::Sender<u64>,
}

impl Discovery {
    /// Of this node; `resolvers` are the DNS resolvers that the operator gave.
    pub(super) fn new(node: &str, resolvers: &[IpAddr]) -> Self {
        let view = View {
            node: node.to_owned(),
            ..View::default()
        };
        let asked = Arc::new(Asked::default());
        let asking = resolvers.iter().filter_map(|address| asked.ask(*address));
        Self {
            view: RwLock::new(view),
            _resolvers: asking.collect(),
            asked,
            resolvers: resolvers.to_vec(),
            changes: watch::Sender::new(0),
        }
    }

    /// What is known. Not to be held across an await.
    pub(super) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What control is asked about.
    pub(super) fn asked(&self) -> &Arc<Asked> {
        &self.asked
    }

    /// What is known; `None` while nothing is: without discovery, "not in the model" means
    /// nothing.
    pub(super) fn known(&self) -> Option<RwLockReadGuard<'_, View>> {
        self.synced().then(|| self.view())
    }

    /// Whether discovery is known.
    pub(super) fn synced(&self) -> bool {
        *self.changes.borrow() > 0
    }

    /// Changes to come.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Goes over to a version in one step and wakes whoever waits for changes.
    pub(super) fn update(&self, version: &str, change: impl FnOnce(&mut View) -> Touched) {
        let mut view = self.write();
        let touched = change(&mut view);
        view.policies += u64::from(touched.policies);
        view.places += u64::from(touched.places);
        view.version = version.into();
        view.derive(&self.resolvers);
        drop(view);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Forgets the addresses that nobody has used since `before`, and returns them. Who asks
    /// again from now on gets no answer that is no longer kept up to date.
    pub(super) fn forget_unused(&self, before: Instant) -> Vec<IpAddr> {
        // Nobody asks while this is held: they all look at the view.
        let mut view = self.write();
        let unused = self.asked.take_unused(before);
        for address in &unused {
            view.answered.remove(address);
        }
        unused
    }

    fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::identity::Identity;

    #[test]
    fn the_clusters_dns_is_found_by_its_service() {
        let configured: IpAddr = "169.254.20.10".parse().unwrap();
        let discovery = Discovery::new("a", &[configured]);
        let key: Arc<str> = "kube-system/kube-dns.kube-system.svc".into();
        discovery.update("1", |view| {
            let mesh = &mut view.mesh;
            let domain = "cluster.local".parse().unwrap();
            let identity = Identity::new(domain, "kube-system", "dns").unwrap();
            mesh.insert_workload(Workload {
                addresses: vec!["10.0.0.53".parse().unwrap(), configured],
                services: [(key.clone(), [(53, 53)].into())].into(),
                ..Workload::new("dns", "dns", identity)
            });
            mesh.insert_service(Service {
                key,
                name: "kube-dns".to_owned(),
                namespace: "kube-system".to_owned(),
                addresses: vec!["10.96.0.10".parse().unwrap()],
                ports: [53].into(),
                traffic: Default::default(),
            });
            Touched::default()
        });
        let found: Vec<String> = discovery
            .view()
            .resolvers
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["169.254.20.10", "10.96.0.10", "10.0.0.53"]);
        let before = discovery.view().resolvers.clone();
        discovery.update("2", |_| Touched::default());
        assert!(Arc::ptr_eq(&before, &discovery.view().resolvers));
    }
}
