//! What a worker is told of the other ends of its flows: where a destination leads, and who a
//! source is.

use std::net::IpAddr;

use mesh_api::convert::address_to_bytes;
use mesh_api::convert::policy::traffic_to_wire;
use mesh_api::worker::{Destination, Endpoint, SourceInfo};
use mesh_core::model::{self, Health, Resolution, ServiceKey, TunnelPort, Workload};
use prost::Message;

use super::discovery::View;
use crate::channel::MAX_PACKET;

/// How long a worker may use a negative answer before it asks again.
pub(super) const NEGATIVE_TTL_MS: u32 = 5_000;
/// Most endpoints of one answer, and most bytes of them: an answer is one packet.
const MAX_ENDPOINTS: usize = 1_000;
const MAX_ENDPOINTS_LEN: usize = MAX_PACKET - 8 * 1024;

impl View {
    /// Where `address:port` leads; `None` where control has not said yet.
    pub(super) fn destination(&self, address: IpAddr, port: u16) -> Option<Destination> {
        let (known, service, endpoints) = match self.mesh.resolve(address, port) {
            Resolution::Workload(endpoint) => (true, None, vec![endpoint]),
            Resolution::Service(key, endpoints) => (true, Some(key), endpoints),
            Resolution::Unknown if !self.answered.contains(&address) => return None,
            Resolution::Unknown => (false, None, Vec::new()),
        };
        let mut endpoints: Vec<Endpoint> = endpoints.iter().map(|e| self.endpoint(e)).collect();
        fit(&mut endpoints);
        let negative = !endpoints.iter().any(|e| e.hbone);
        let service_of = |key: &ServiceKey| self.mesh.service(key);
        let traffic = service.as_ref().map(|key| {
            let traffic = service_of(key).and_then(|service| traffic_to_wire(&service.traffic));
            traffic.unwrap_or_default()
        });
        Some(Destination {
            address: address_to_bytes(&address),
            port: u32::from(port),
            endpoints,
            known,
            service: service.map_or_else(String::new, |key| key.to_string()),
            ttl_ms: if negative { NEGATIVE_TTL_MS } else { 0 },
            traffic,
        })
    }

    fn endpoint(&self, endpoint: &model::Endpoint) -> Endpoint {
        let workload = &endpoint.workload;
        Endpoint {
            address: address_to_bytes(&endpoint.address),
            port: u32::from(endpoint.port),
            hbone: workload.enrolled(),
            identity: workload.identity.to_string(),
            workload_uid: workload.uid.to_string(),
            workload_name: workload.name.clone(),
            labels: workload.labels.clone(),
            services: services_of(workload),
            unhealthy: workload.health == Health::Unhealthy,
            distance: self.distance(workload),
            original_port: workload.tunnel_port == TunnelPort::Original,
        }
    }

    /// How far it is: 0 for this node, 1 for its zone, 2 for its region, 3 for elsewhere and
    /// for what nobody knows.
    fn distance(&self, workload: &Workload) -> u32 {
        let (here, there) = (&self.locality, &workload.locality);
        let same_region = !here.region.is_empty() && here.region == there.region;
        let same_zone = !here.zone.is_empty() && here.zone == there.zone;
        match (same_region, same_zone) {
            _ if !self.node.is_empty() && workload.node == self.node => 0,
            // Zones are named within their region.
            (true, true) => 1,
            (false, true) if here.region.is_empty() && there.region.is_empty() => 1,
            (true, false) => 2,
            (false, _) => 3,
        }
    }

    /// Who a peer is; `None` where control has not said yet.
    pub(super) fn source(&self, address: IpAddr) -> Option<SourceInfo> {
        let unknown = SourceInfo {
            address: address_to_bytes(&address),
            ..SourceInfo::default()
        };
        match self.mesh.workload_at(address) {
            // A service's address is nobody's to call from.
            None if self.mesh.service_at(address).is_some() => Some(unknown),
            None => self.answered.contains(&address).then_some(unknown),
            Some(workload) => Some(SourceInfo {
                known: true,
                identity: workload.identity.to_string(),
                labels: workload.labels.clone(),
                services: services_of(workload),
                hbone: workload.enrolled(),
                ..unknown
            }),
        }
    }
}

/// "namespace/hostname" of every service that a workload belongs to.
pub(super) fn services_of(workload: &Workload) -> Vec<String> {
    workload.services.keys().map(ToString::to_string).collect()
}

/// Leaves out what one packet can't hold: of a service that large, the farthest endpoints and
/// those that are not well.
fn fit(endpoints: &mut Vec<Endpoint>) {
    let mut len = 0;
    let mut fits = |endpoint: &Endpoint| {
        // Tag and length come before each.
        len += endpoint.encoded_len() + 8;
        len <= MAX_ENDPOINTS_LEN
    };
    let all_fit = endpoints.len() <= MAX_ENDPOINTS && endpoints.iter().all(&mut fits);
    if !all_fit {
        endpoints.sort_by_key(|endpoint| (endpoint.unhealthy, endpoint.distance));
        endpoints.truncate(MAX_ENDPOINTS);
        len = 0;
        let fitting = endpoints.iter().take_while(|endpoint| {
            len += endpoint.encoded_len() + 8;
            len <= MAX_ENDPOINTS_LEN
        });
        let fitting = fitting.count();
        endpoints.truncate(fitting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::discovery::{Discovery, Touched};
    use mesh_core::identity::Identity;
    use mesh_core::model::{Enrolment, Locality, Service};
    use mesh_core::traffic::{Balancing, Traffic};

    const CART: &str = "10.0.0.2";

    fn workload(uid: &str, last: u8) -> Workload {
        let identity = Identity::new("cluster.local".parse().unwrap(), "shop", "cart").unwrap();
        Workload {
            addresses: vec![[10, 0, 0, last].into()],
            enrolment: Enrolment::Enforce,
            labels: [("app".to_owned(), "cart".to_owned())].into(),
            services: [("shop/cart".into(), [(80, 8080)].into())].into(),
            ..Workload::new(uid, "cart", identity)
        }
    }

    fn located(uid: &str, node: &str, region: &str, zone: &str) -> Workload {
        Workload {
            node: node.to_owned(),
            locality: Locality {
                region: region.to_owned(),
                zone: zone.to_owned(),
            },
            ..workload(uid, 2)
        }
    }

    fn view_of(workloads: Vec<Workload>) -> Discovery {
        let discovery = Discovery::new("a", &[]);
        discovery.update("1", |view| {
            for workload in workloads {
                view.mesh.insert_workload(workload);
            }
            Touched::default()
        });
        discovery
    }

    #[test]
    fn an_answer_names_the_identity_to_insist_on_and_what_policy_may_ask() {
        let discovery = view_of(vec![workload("u", 2)]);
        let found = discovery.view().destination(CART.parse().unwrap(), 80);
        let found = found.unwrap();
        assert!(found.known && found.ttl_ms == 0 && found.traffic.is_none());
        let endpoint = &found.endpoints[0];
        assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(endpoint.labels["app"], "cart");
        assert_eq!(endpoint.services, ["shop/cart"]);
        let source = discovery.view().source(CART.parse().unwrap()).unwrap();
        assert_eq!(
            (&source.labels, &source.services),
            (&endpoint.labels, &endpoint.services)
        );
    }

    #[test]
    fn nothing_is_said_of_an_address_that_control_has_not_spoken_of() {
        let discovery = view_of(vec![workload("u", 2)]);
        let nobody = "10.9.9.9".parse().unwrap();
        let (destination, source) = {
            let view = discovery.view();
            (view.destination(nobody, 80), view.source(nobody))
        };
        assert_eq!((destination, source), (None, None));
        discovery.update("2", |view| {
            view.answered.insert(nobody);
            Touched::default()
        });
        let view = discovery.view();
        let destination = view.destination(nobody, 80).unwrap();
        assert!(!destination.known && destination.ttl_ms == NEGATIVE_TTL_MS);
        assert!(!view.source(nobody).unwrap().known);
    }

    #[test]
    fn a_pod_outside_the_mesh_is_named_but_takes_no_tunnel() {
        let plain = Workload {
            enrolment: Enrolment::None,
            ..workload("u", 2)
        };
        let discovery = view_of(vec![plain]);
        let found = discovery.view().destination(CART.parse().unwrap(), 80);
        let found = found.unwrap();
        assert!(found.known && found.ttl_ms == NEGATIVE_TTL_MS);
        assert!(!found.endpoints[0].hbone);
        assert_eq!(found.endpoints[0].services, ["shop/cart"]);
        assert_eq!(
            found.endpoints[0].identity,
            "spiffe://cluster.local/ns/shop/sa/cart"
        );
    }

    #[test]
    fn a_services_answer_says_how_its_endpoints_are_chosen_and_which_are_well() {
        let sick = Workload {
            health: Health::Unhealthy,
            ..workload("u2", 3)
        };
        let discovery = view_of(vec![workload("u1", 2), sick]);
        let service = |balancing| Service {
            key: "shop/cart".into(),
            name: "cart".to_owned(),
            namespace: "shop".to_owned(),
            addresses: vec!["10.96.0.2".parse().unwrap()],
            ports: [80].into(),
            traffic: Traffic {
                balancing,
                ..Traffic::default()
            },
        };
        for (balancing, told) in [(Balancing::LeastRequests, 0), (Balancing::RoundRobin, 1)] {
            discovery.update("2", |view| {
                view.mesh.insert_service(service(balancing));
                Touched::default()
            });
            let found = discovery
                .view()
                .destination("10.96.0.2".parse().unwrap(), 80)
                .unwrap();
            assert_eq!(found.traffic.unwrap().balancing, told);
            let unhealthy: Vec<bool> = found.endpoints.iter().map(|e| e.unhealthy).collect();
            assert_eq!(
                (found.service.as_str(), unhealthy),
                ("shop/cart", vec![false, true])
            );
            assert!(found.endpoints.iter().all(|e| e.port == 8080));
        }
    }

    #[test]
    fn distance_counts_node_zone_and_region_as_far_as_they_are_known() {
        let here = view_of(vec![located("self", "a", "eu", "eu-1")]);
        let far = |node, region, zone| here.view().distance(&located("u", node, region, zone));
        assert_eq!(far("a", "us", "us-1"), 0);
        assert_eq!(far("b", "eu", "eu-1"), 1);
        assert_eq!(far("b", "eu", "eu-2"), 2);
        assert_eq!(far("b", "us", "eu-1"), 3);
        assert_eq!(far("b", "", ""), 3);
        let nowhere = view_of(vec![located("self", "a", "", "")]);
        let far = |node, region, zone| nowhere.view().distance(&located("u", node, region, zone));
        assert_eq!((far("a", "", ""), far("b", "", "")), (0, 3));
    }

    #[test]
    fn what_one_packet_cannot_hold_are_the_farthest_and_the_sick() {
        let long = "x".repeat(1_000);
        let endpoint = |n: usize| Endpoint {
            workload_uid: format!("{n}"),
            labels: [("k".to_owned(), long.clone())].into(),
            distance: if n < 100 { 3 } else { 0 },
            unhealthy: n >= 180,
            ..Endpoint::default()
        };
        let mut endpoints: Vec<Endpoint> = (0..200).map(endpoint).collect();
        fit(&mut endpoints);
        let destination = Destination {
            endpoints,
            ..Destination::default()
        };
        assert!(destination.encoded_len() < MAX_PACKET);
        let kept = &destination.endpoints;
        assert!(kept.len() > 120 && kept[0].workload_uid == "100");
        assert!(kept.iter().all(|e| !e.unhealthy));
    }
}
