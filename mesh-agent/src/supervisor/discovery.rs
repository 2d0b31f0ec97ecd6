//! What discovery says, shared by the pods' tasks: one model, and a signal for its changes.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use mesh_api::convert::address_to_bytes;
use mesh_api::worker::{Destination, Endpoint, SourceInfo};
use mesh_core::model::{Mesh, Resolution};
use tokio::sync::watch;

/// How long a worker may use a negative answer before it asks again.
pub(super) const NEGATIVE_TTL_MS: u32 = 5_000;
/// Most endpoints of one answer: what fits into a packet of the channel.
const MAX_ENDPOINTS: usize = 1_000;

/// The model and its version.
#[derive(Debug)]
pub(super) struct Discovery {
    mesh: RwLock<Mesh>,
    /// 0 until discovery is known; grows with every change.
    version: watch::Sender<u64>,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            mesh: RwLock::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Discovery {
    /// The model. Not to be held across an await.
    pub(super) fn mesh(&self) -> RwLockReadGuard<'_, Mesh> {
        self.mesh.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether discovery is known: without it, "not in the model" means nothing.
    pub(super) fn synced(&self) -> bool {
        *self.version.borrow() > 0
    }

    /// Changes to come.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Changes the model in one step and wakes whoever waits for changes.
    pub(super) fn update(&self, change: impl FnOnce(&mut Mesh)) {
        change(&mut self.mesh.write().unwrap_or_else(PoisonError::into_inner));
        self.version.send_modify(|version| *version += 1);
    }

    /// Where `address:port` leads, as a worker is told; `None` while discovery is unknown.
    pub(super) fn destination(&self, address: IpAddr, port: u16) -> Option<Destination> {
        self.synced().then(|| answer(&self.mesh(), address, port))
    }

    /// Who a peer is; `None` while discovery is unknown.
    pub(super) fn source(&self, address: IpAddr) -> Option<SourceInfo> {
        if !self.synced() {
            return None;
        }
        let mesh = self.mesh();
        let workload = mesh.workload_at(address);
        Some(SourceInfo {
            address: address_to_bytes(&address),
            known: workload.is_some(),
            identity: workload.map_or_else(String::new, |w| w.identity.to_string()),
            ..SourceInfo::default()
        })
    }
}

fn answer(mesh: &Mesh, address: IpAddr, port: u16) -> Destination {
    let (known, service, endpoints) = match mesh.resolve(address, port) {
        Resolution::Workload(endpoint) => (true, String::new(), vec![endpoint]),
        Resolution::Service(key, endpoints) => (true, key.to_string(), endpoints),
        Resolution::Unknown => (false, String::new(), Vec::new()),
    };
    let endpoints: Vec<Endpoint> = endpoints
        .iter()
        .take(MAX_ENDPOINTS)
        .map(|endpoint| Endpoint {
            address: address_to_bytes(&endpoint.address),
            port: u32::from(endpoint.port),
            hbone: endpoint.workload.enrolled(),
            identity: endpoint.workload.identity.to_string(),
            workload_uid: endpoint.workload.uid.to_string(),
            workload_name: endpoint.workload.name.clone(),
            ..Endpoint::default()
        })
        .collect();
    let negative = !endpoints.iter().any(|e| e.hbone);
    Destination {
        address: address_to_bytes(&address),
        port: u32::from(port),
        endpoints,
        known,
        service,
        ttl_ms: if negative { NEGATIVE_TTL_MS } else { 0 },
        traffic: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::identity::Identity;
    use mesh_core::model::{Enrolment, Workload};

    fn workload(enrolment: Enrolment) -> Workload {
        let identity = Identity::new("cluster.local".parse().unwrap(), "shop", "cart").unwrap();
        Workload {
            addresses: vec!["10.0.0.2".parse().unwrap()],
            enrolment,
            ..Workload::new("Kubernetes//v1/Pod/shop/cart", "cart", identity)
        }
    }

    #[test]
    fn nothing_is_answered_before_discovery_is_known() {
        let discovery = Discovery::default();
        let address = "10.0.0.2".parse().unwrap();
        assert_eq!(discovery.destination(address, 80), None);
        assert_eq!(discovery.source(address), None);
        discovery.update(|_| {});
        assert!(!discovery.destination(address, 80).unwrap().known);
    }

    #[test]
    fn an_answer_names_the_identity_to_insist_on() {
        let discovery = Discovery::default();
        discovery.update(|mesh| assert!(mesh.insert_workload(workload(Enrolment::Enforce))));
        let found = discovery
            .destination("10.0.0.2".parse().unwrap(), 80)
            .unwrap();
        assert!(found.known && found.ttl_ms == 0);
        assert_eq!(
            found.endpoints[0].identity,
            "spiffe://cluster.local/ns/shop/sa/cart"
        );
        discovery.update(|mesh| assert!(mesh.insert_workload(workload(Enrolment::None))));
        let found = discovery
            .destination("10.0.0.2".parse().unwrap(), 80)
            .unwrap();
        assert_eq!(found.ttl_ms, NEGATIVE_TTL_MS);
        assert!(!found.endpoints[0].hbone);
    }
}
