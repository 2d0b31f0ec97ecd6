//! What discovery says of a destination.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use mesh_api::convert::policy::traffic_from_wire;
use mesh_api::worker::{Destination as DestinationMessage, Endpoint as EndpointMessage};
use mesh_core::identity::Identity;
use mesh_core::model::ServiceKey;
use mesh_core::policy::Labels;
use mesh_core::traffic::Traffic;

use super::balance::Balancer;
use super::metrics::{Count, Metrics};

/// One place a destination leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// Whether it is a member of the mesh, which takes HBONE; any other is reached plain or not
    /// at all.
    pub(crate) hbone: bool,
    /// What a member's certificate must carry; of a pod outside the mesh, what discovery says.
    pub(crate) identity: Identity,
    pub(crate) workload_uid: Rc<str>,
    pub(crate) labels: Labels,
    /// Every service it belongs to, the one that was dialled among them.
    pub(crate) services: Vec<ServiceKey>,
    /// Its own node's health checks fail.
    pub(crate) unhealthy: bool,
    /// 0: the same node, 1: the same zone, 2: the same region, 3: elsewhere or not known.
    pub(crate) distance: u8,
    /// Tunnels to it go to the port of the address, not to 15008.
    pub(crate) original_port: bool,
}

/// What discovery says of a destination.
#[derive(Debug)]
pub(crate) struct Destination {
    /// Whether it is in discovery at all.
    pub(crate) known: bool,
    /// Members of the mesh and others, in discovery's order.
    pub(crate) endpoints: Vec<Rc<Endpoint>>,
    pub(crate) traffic: Traffic,
    pub(crate) balancer: Balancer,
}

impl Destination {
    /// Reads an answer that follows on `before`.
    pub(crate) fn parse(
        message: &DestinationMessage,
        before: Option<&Self>,
        metrics: &Metrics,
    ) -> Self {
        let endpoints = message.endpoints.iter().filter_map(|endpoint| {
            let parsed = parse_endpoint(endpoint).map(Rc::new);
            if parsed.is_none() {
                metrics.add(Count::BadEndpoints, 1);
            }
            parsed
        });
        let endpoints: Vec<_> = endpoints.collect();
        let traffic = traffic_from_wire(message.traffic.as_ref()).unwrap_or_else(|error| {
            let service = &message.service;
            tracing::warn!(%error, %service, "a service's traffic settings can't be read; the defaults hold");
            Traffic::default()
        });
        Self {
            known: message.known,
            balancer: Balancer::after(before, &endpoints),
            endpoints,
            traffic,
        }
    }
}

fn parse_endpoint(message: &EndpointMessage) -> Option<Endpoint> {
    let port = u16::try_from(message.port).ok().filter(|port| *port != 0)?;
    Some(Endpoint {
        address: SocketAddr::new(address_of(&message.address)?, port),
        hbone: message.hbone,
        identity: message.identity.parse().ok()?,
        workload_uid: message.workload_uid.as_str().into(),
        labels: message.labels.clone(),
        services: message.services.iter().map(|s| s.as_str().into()).collect(),
        unhealthy: message.unhealthy,
        distance: u8::try_from(message.distance).unwrap_or(u8::MAX),
        original_port: message.original_port,
    })
}

/// An address of 4 or 16 bytes.
pub(crate) fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(|b| Ipv4Addr::from(b).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|b| Ipv6Addr::from(b).to_canonical());
    v4().or_else(|_| v6()).ok()
}

/// The bytes of an address, 4 or 16.
pub(crate) fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
