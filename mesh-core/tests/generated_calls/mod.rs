//! Flows, and authentication scopes, from the universe of [`crate::generated`].

use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::Identity;
use mesh_core::model::ServiceKey;
use mesh_core::policy::{
    AuthenticationMode, AuthenticationPolicy, Direction, Flow, Labels, Peer, Protocol,
};
use proptest::prelude::*;

use crate::generated;

fn mode() -> impl Strategy<Value = AuthenticationMode> {
    prop_oneof![
        1 => Just(AuthenticationMode::Strict),
        2 => Just(AuthenticationMode::Permissive)
    ]
}

pub(crate) fn scopes() -> impl Strategy<Value = Vec<Arc<AuthenticationPolicy>>> {
    let ports = prop::collection::btree_map(generated::port(), mode(), 0..3);
    let scope = (generated::target(), prop::option::of(mode()), ports);
    prop::collection::vec(scope, 0..4).prop_map(|scopes| {
        let scopes = scopes.into_iter().enumerate();
        let policy = |(n, (target, mode, ports))| AuthenticationPolicy {
            key: format!("a/s{n}").into(),
            target,
            mode,
            ports,
        };
        scopes.map(policy).map(Arc::new).collect()
    })
}

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

pub(crate) fn call() -> impl Strategy<Value = Call> {
    let ends = (
        generated::address(),
        any::<bool>(),
        prop::option::weighted(0.8, generated::identity()),
        prop::collection::vec(generated::service_key(), 0..3),
        generated::labels(),
    );
    (
        generated::direction(),
        ends,
        generated::port(),
        generated::protocol(),
    )
        .prop_map(
            |(direction, (address, member, identity, services, labels), port, protocol)| Call {
                direction,
                address,
                member: member && identity.is_some(),
                identity,
                services,
                labels,
                port,
                protocol,
            },
        )
}
