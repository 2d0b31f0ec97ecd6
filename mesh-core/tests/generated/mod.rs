//! Policies, and what peers have, by chance.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::identity::Identity;
use mesh_core::model::ServiceKey;
use mesh_core::policy::{
    Action, AuthorizationPolicy, Direction, Labels, PeerTerm, PortTerm, Protocol, Rule, Target,
};
use proptest::prelude::*;
use proptest::sample::select;

use crate::universe::{ADDRESSES, CIDRS, LABELS, NAMESPACES, SERVICES};

pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
    select(ADDRESSES.to_vec()).prop_map(|text| text.parse().unwrap())
}

pub(crate) fn port() -> impl Strategy<Value = u16> {
    prop_oneof![2 => Just(80), 1 => Just(81), 1 => Just(53)]
}

pub(crate) fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![2 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)]
}

pub(crate) fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Inbound), Just(Direction::Outbound)]
}

fn namespace() -> impl Strategy<Value = &'static str> {
    select(NAMESPACES.to_vec())
}

pub(crate) fn identity() -> impl Strategy<Value = Identity> {
    (
        select(vec!["td", "other"]),
        namespace(),
        select(vec!["x", "y"]),
    )
        .prop_map(|(td, ns, sa)| Identity::new(td.parse().unwrap(), ns, sa).unwrap())
}

pub(crate) fn service_key() -> impl Strategy<Value = ServiceKey> {
    select(SERVICES.to_vec()).prop_map(Into::into)
}

pub(crate) fn labels() -> impl Strategy<Value = Labels> {
    let pair = (select(LABELS.to_vec()), select(vec!["0", "1"]));
    prop::collection::vec(pair, 0..3).prop_map(|pairs| {
        let owned = pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
        owned.collect()
    })
}

fn wanted_labels() -> impl Strategy<Value = Labels> {
    labels().prop_filter("a selector that names something", |labels| {
        !labels.is_empty()
    })
}

fn cidr() -> impl Strategy<Value = IpNet> {
    select(CIDRS.to_vec()).prop_map(|text| text.parse().unwrap())
}

pub(crate) fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::Mesh),
        Just(Target::Namespace),
        service_key().prop_map(Target::Service),
        wanted_labels().prop_map(Target::Labels),
    ]
}

/// Mostly one thing, as people write them; at times several at once.
fn peer_term() -> impl Strategy<Value = PeerTerm> {
    let sometimes = 0.2;
    prop_oneof![
        1 => identity().prop_map(|identity| PeerTerm { identity: Some(identity), ..PeerTerm::default() }),
        1 => namespace().prop_map(|ns| PeerTerm { namespace: Some(ns.into()), ..PeerTerm::default() }),
        1 => service_key().prop_map(|key| PeerTerm { service: Some(key), ..PeerTerm::default() }),
        1 => wanted_labels().prop_map(|labels| PeerTerm { labels, ..PeerTerm::default() }),
        2 => cidr().prop_map(|cidr| PeerTerm { cidr: Some(cidr), ..PeerTerm::default() }),
        2 => (
            prop::option::weighted(sometimes, identity()),
            prop::option::weighted(0.4, namespace()),
            prop::option::weighted(sometimes, service_key()),
            labels(),
            prop::option::weighted(sometimes, cidr()),
        )
            .prop_map(|(identity, namespace, service, labels, cidr)| PeerTerm {
                identity,
                namespace: namespace.map(Into::into),
                service,
                labels,
                cidr,
            })
            .prop_filter("empty terms are refused at the source", |term| {
                *term != PeerTerm::default()
            }),
    ]
}

fn port_term() -> impl Strategy<Value = PortTerm> {
    (prop::option::weighted(0.6, port()), protocol())
        .prop_map(|(port, protocol)| PortTerm { port, protocol })
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        prop::collection::vec(peer_term(), 0..3),
        prop::collection::btree_set(port_term(), 0..3),
    )
        .prop_map(|(peers, ports)| Rule { peers, ports })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![3 => Just(Action::Allow), 1 => Just(Action::Deny)]
}

fn policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let rules = prop::collection::vec(rule(), 0..3);
    (namespace(), 0u8..6, target(), direction(), action(), rules).prop_map(
        |(namespace, name, target, direction, action, rules)| AuthorizationPolicy {
            key: format!("{namespace}/p{name}").into(),
            target,
            direction,
            action,
            rules,
        },
    )
}

/// Policies, each key once.
pub(crate) fn policies(most: usize) -> impl Strategy<Value = Vec<Arc<AuthorizationPolicy>>> {
    prop::collection::vec(policy(), 0..most).prop_map(|policies| {
        let by_key: BTreeMap<_, _> = policies.into_iter().map(|p| (p.key.clone(), p)).collect();
        // Not in the order of keys: nobody promises that.
        by_key.into_values().rev().map(Arc::new).collect()
    })
}
