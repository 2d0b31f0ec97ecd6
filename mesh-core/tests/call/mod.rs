//! Flows to decide on.

use std::net::IpAddr;

use mesh_core::identity::Identity;
use mesh_core::model::ServiceKey;
use mesh_core::policy::{Direction, Flow, Labels, Peer, Protocol};

/// A flow that owns what it speaks of.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) direction: Direction,
    pub(crate) address: IpAddr,
    pub(crate) member: bool,
    pub(crate) identity: Option<Identity>,
    pub(crate) services: Vec<ServiceKey>,
    pub(crate) labels: Labels,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

impl Call {
    pub(crate) fn flow(&self) -> Flow<'_> {
        Flow {
            direction: self.direction,
            peer: Peer {
                address: self.address,
                member: self.member,
                identity: self.identity.as_ref(),
                services: &self.services,
                labels: &self.labels,
            },
            port: self.port,
            protocol: self.protocol,
        }
    }
}
