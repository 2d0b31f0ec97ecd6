//! Policies and flows of the property tests' universe, as the bytes of an input choose them: one
//! byte, one choice, so that a fuzzer that changes a byte changes one thing. Beyond the end all
//! bytes are 0, which is the first choice, and none of what there may be several of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::Identity;
use mesh_core::model::ServiceKey;
use mesh_core::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, Labels,
    PeerTerm, PortTerm, Protocol, Rule, Target,
};

use crate::call::Call;
use crate::input::Input;
use crate::universe::{ADDRESSES, CIDRS, LABELS, NAMESPACES, SERVICES};

/// Most policies of a pod.
const MOST_POLICIES: u8 = 14;

fn one_of<T: Copy>(input: &mut Input<'_>, choices: &[T]) -> T {
    choices[usize::from(input.byte()) % choices.len()]
}

/// At most `most`.
pub(super) fn several<T>(input: &mut Input<'_>, most: u8, one: fn(&mut Input<'_>) -> T) -> Vec<T> {
    let count = input.byte() % (most + 1);
    (0..count).map(|_| one(input)).collect()
}

fn bool(input: &mut Input<'_>) -> bool {
    one_of(input, &[false, true])
}

fn maybe<T>(input: &mut Input<'_>, one: fn(&mut Input<'_>) -> T) -> Option<T> {
    bool(input).then(|| one(input))
}

pub(super) fn address(input: &mut Input<'_>) -> IpAddr {
    one_of(input, &ADDRESSES).parse().expect("an address")
}

fn namespace(input: &mut Input<'_>) -> &'static str {
    one_of(input, &NAMESPACES)
}

fn identity(input: &mut Input<'_>) -> Identity {
    let domain = one_of(input, &["td", "other"]);
    let (namespace, account) = (namespace(input), one_of(input, &["x", "y"]));
    let domain = domain.parse().expect("a trust domain");
    Identity::new(domain, namespace, account).expect("an identity")
}

fn service(input: &mut Input<'_>) -> ServiceKey {
    one_of(input, &SERVICES).into()
}

fn label(input: &mut Input<'_>) -> (String, String) {
    let (key, value) = (one_of(input, &LABELS), one_of(input, &["0", "1"]));
    (key.to_owned(), value.to_owned())
}

fn labels(input: &mut Input<'_>) -> Labels {
    several(input, 2, label).into_iter().collect()
}

fn port(input: &mut Input<'_>) -> u16 {
    one_of(input, &[80, 81, 53])
}

fn protocol(input: &mut Input<'_>) -> Protocol {
    one_of(input, &[Protocol::Tcp, Protocol::Udp])
}

fn direction(input: &mut Input<'_>) -> Direction {
    one_of(input, &[Direction::Inbound, Direction::Outbound])
}

fn mode(input: &mut Input<'_>) -> AuthenticationMode {
    let modes = [AuthenticationMode::Permissive, AuthenticationMode::Strict];
    one_of(input, &modes)
}

/// A selector names something.
fn target(input: &mut Input<'_>) -> Target {
    match input.byte() % 4 {
        0 => Target::Mesh,
        1 => Target::Namespace,
        2 => Target::Service(service(input)),
        _ => Target::Labels([label(input), label(input)].into_iter().collect()),
    }
}

/// Empty terms are refused at the source.
fn peer(input: &mut Input<'_>) -> Option<PeerTerm> {
    let block = |input: &mut Input<'_>| one_of(input, &CIDRS).parse().expect("a block");
    let term = PeerTerm {
        identity: maybe(input, identity),
        namespace: maybe(input, namespace).map(Into::into),
        service: maybe(input, service),
        labels: labels(input),
        cidr: maybe(input, block),
    };
    (term != PeerTerm::default()).then_some(term)
}

fn port_term(input: &mut Input<'_>) -> PortTerm {
    PortTerm {
        port: maybe(input, port),
        protocol: protocol(input),
    }
}

fn rule(input: &mut Input<'_>) -> Rule {
    Rule {
        peers: several(input, 2, peer).into_iter().flatten().collect(),
        ports: several(input, 2, port_term).into_iter().collect(),
    }
}

fn policy(input: &mut Input<'_>) -> AuthorizationPolicy {
    let name = input.byte() % 6;
    AuthorizationPolicy {
        key: format!("{}/p{name}", namespace(input)).into(),
        target: target(input),
        direction: direction(input),
        action: one_of(input, &[Action::Allow, Action::Deny]),
        rules: several(input, 2, rule),
    }
}

/// Policies, each key once, and not in the order of keys: nobody promises that.
pub(super) fn policies(input: &mut Input<'_>) -> Vec<Arc<AuthorizationPolicy>> {
    let policies = several(input, MOST_POLICIES, policy).into_iter();
    let by_key: BTreeMap<_, _> = policies.map(|p| (p.key.clone(), p)).collect();
    by_key.into_values().rev().map(Arc::new).collect()
}

pub(super) fn scopes(input: &mut Input<'_>) -> Vec<Arc<AuthenticationPolicy>> {
    let scope = |input: &mut Input<'_>| {
        let ports = several(input, 2, |input| (port(input), mode(input)));
        (target(input), maybe(input, mode), ports)
    };
    let scopes = several(input, 3, scope).into_iter().enumerate();
    let policy = |(n, (target, mode, ports)): (usize, (Target, _, Vec<_>))| AuthenticationPolicy {
        key: format!("a/s{n}").into(),
        target,
        mode,
        ports: ports.into_iter().collect(),
    };
    scopes.map(policy).map(Arc::new).collect()
}

pub(super) fn call(input: &mut Input<'_>) -> Call {
    let (direction, member) = (direction(input), bool(input));
    let identity = maybe(input, identity);
    Call {
        direction,
        address: address(input),
        member: member && identity.is_some(),
        identity,
        services: several(input, 2, service),
        labels: labels(input),
        port: port(input),
        protocol: protocol(input),
    }
}
