//! The policy engine against a model that reads every policy for every flow, as the
//! documentation of the types has it.

mod generated;
mod generated_calls;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, Labels,
    PORT_DNS, PeerTerm, PodPolicy, Protocol, Rule, Target,
};
use mesh_core::reason::Reason;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use generated_calls::Call;

/// Sets of policies, and flows decided by each: together more than 100,000 decisions.
const SETS: u32 = 30_000;
const FLOWS: usize = 6;

struct Model {
    authorizations: Vec<Arc<AuthorizationPolicy>>,
    authentications: Vec<Arc<AuthenticationPolicy>>,
    resolvers: Vec<IpAddr>,
}

impl Model {
    fn decide(&self, flow: &Call) -> (Option<Reason>, Option<String>) {
        let inbound = flow.direction == Direction::Inbound;
        let plain_tcp = flow.protocol == Protocol::Tcp && !flow.member;
        if inbound && plain_tcp && self.mode(flow.port) == AuthenticationMode::Strict {
            return (Some(Reason::InboundPlaintext), None);
        }
        if let Some(policy) = self.first(Action::Deny, flow) {
            return (Some(Reason::PolicyDenied), Some(policy));
        }
        let at_resolver = self
            .resolvers
            .iter()
            .any(|r| r.to_canonical() == flow.address.to_canonical());
        if !inbound && flow.port == PORT_DNS && at_resolver {
            return (None, None);
        }
        if let Some(policy) = self.first(Action::Allow, flow) {
            return (None, Some(policy));
        }
        let reason = match flow.protocol {
            Protocol::Udp => Reason::UdpNotAllowed,
            Protocol::Tcp if inbound || flow.member => Reason::PolicyNoRule,
            Protocol::Tcp if flow.identity.is_some() => Reason::DestinationNotEnrolled,
            Protocol::Tcp => Reason::DestinationUnknown,
        };
        (Some(reason), None)
    }

    fn first(&self, action: Action, flow: &Call) -> Option<String> {
        let mut found: Vec<String> = Vec::new();
        for policy in &self.authorizations {
            if policy.action != action || policy.direction != flow.direction {
                continue;
            }
            for rule in &policy.rules {
                if port_matches(action, rule, flow) && peer_matches(policy, rule, flow) {
                    found.push(policy.key.to_string());
                }
            }
        }
        found.sort();
        found.into_iter().next()
    }

    fn mode(&self, port: u16) -> AuthenticationMode {
        let near: [fn(&Target) -> bool; 3] = [
            |t| matches!(t, Target::Labels(_) | Target::Service(_)),
            |t| matches!(t, Target::Namespace),
            |t| matches!(t, Target::Mesh),
        ];
        for is_near in near {
            let scopes = || self.authentications.iter().filter(|p| is_near(&p.target));
            let of_port: Vec<_> = scopes().filter_map(|p| p.ports.get(&port)).collect();
            let of_rest: Vec<_> = scopes().filter_map(|p| p.mode.as_ref()).collect();
            for modes in [of_port, of_rest] {
                if modes.contains(&&AuthenticationMode::Strict) {
                    return AuthenticationMode::Strict;
                }
                if !modes.is_empty() {
                    return AuthenticationMode::Permissive;
                }
            }
        }
        AuthenticationMode::Strict
    }
}

fn port_matches(action: Action, rule: &Rule, flow: &Call) -> bool {
    if rule.ports.is_empty() {
        return flow.protocol == Protocol::Tcp || action == Action::Deny;
    }
    rule.ports.iter().any(|term| {
        term.protocol == flow.protocol && (term.port.is_none() || term.port == Some(flow.port))
    })
}

fn peer_matches(policy: &AuthorizationPolicy, rule: &Rule, flow: &Call) -> bool {
    let deny = policy.action == Action::Deny;
    if rule.peers.is_empty() {
        return deny || flow.member;
    }
    rule.peers.iter().any(|term| {
        let by_place = term.cidr.is_some()
            || (term.service.is_some() && flow.direction == Direction::Outbound);
        term_matches(policy, term, flow) && (deny || flow.member || by_place)
    })
}

fn term_matches(policy: &AuthorizationPolicy, term: &PeerTerm, flow: &Call) -> bool {
    let namespace = flow.identity.as_ref().map(|id| id.namespace().to_owned());
    if term.identity.is_some() && term.identity != flow.identity {
        return false;
    }
    if term.namespace.is_some() && term.namespace.as_deref() != namespace.as_deref() {
        return false;
    }
    if !term
        .service
        .iter()
        .all(|wanted| flow.services.contains(wanted))
    {
        return false;
    }
    for (key, value) in &term.labels {
        if flow.labels.get(key) != Some(value) {
            return false;
        }
    }
    let own_pods =
        !term.labels.is_empty() && term.namespace.is_none() && policy.target != Target::Mesh;
    if own_pods && namespace.as_deref() != policy.key.split('/').next() {
        return false;
    }
    term.cidr.is_none_or(|cidr| holds(cidr, flow.address))
}

fn holds(cidr: IpNet, address: IpAddr) -> bool {
    match (cidr, address.to_canonical()) {
        (IpNet::V4(cidr), IpAddr::V4(address)) => cidr.contains(&address),
        (IpNet::V6(cidr), IpAddr::V6(address)) => cidr.contains(&address),
        (IpNet::V4(_), IpAddr::V6(_)) => false,
        // A block of mapped addresses alone is a block of IPv4.
        (IpNet::V6(cidr), IpAddr::V4(address)) => {
            cidr.prefix_len() >= 96 && cidr.contains(&address.to_ipv6_mapped())
        }
    }
}

#[test]
fn the_engine_decides_as_the_model_does() {
    let strategy = (
        generated::policies(14),
        generated_calls::scopes(),
        prop::collection::vec(generated::address(), 0..3),
        prop::collection::vec(generated_calls::call(), FLOWS),
    );
    // What the generated flows met, so that the test can't come to test nothing.
    let met: RefCell<BTreeMap<&str, u32>> = RefCell::default();
    let config = Config {
        cases: SETS,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&strategy, |(policies, scopes, resolvers, calls)| {
        let engine = PodPolicy::new(policies.clone(), scopes.clone(), resolvers.clone());
        let model = Model {
            authorizations: policies,
            authentications: scopes,
            resolvers,
        };
        for call in &calls {
            let flow = call.flow();
            let decision = engine.decide(&flow);
            let decided = (decision.refused, decision.policy.map(ToString::to_string));
            let expected = model.decide(call);
            prop_assert_eq!(&decided, &expected, "{:?}", call);
            prop_assert_eq!(engine.authentication(call.port), model.mode(call.port));
            let mut met = met.borrow_mut();
            let mut meet = |what| *met.entry(what).or_default() += 1;
            meet("flow");
            meet(match &expected {
                (None, None) => "dns",
                (None, Some(_)) => "allowed",
                (Some(reason), _) => reason.code(),
            });
            if call.protocol == Protocol::Udp && expected.0.is_none() {
                meet("udp allowed");
            }
            if call.protocol == Protocol::Udp && expected.0 == Some(Reason::PolicyDenied) {
                meet("udp denied");
            }
            if !call.member && expected.1.is_some() && expected.0.is_none() {
                meet("plain allowed");
            }
            if call.direction == Direction::Inbound && !call.member && expected.0.is_none() {
                meet("permissive");
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));

    let met = met.into_inner();
    let share = |what: &str| met.get(what).copied().unwrap_or(0) * 1000 / met["flow"];
    assert!(met["flow"] >= 100_000);
    for (what, least) in [
        ("allowed", 100),
        ("policy_denied", 100),
        ("policy_no_rule", 50),
        ("inbound_plaintext", 50),
        ("destination_unknown", 10),
        ("destination_not_enrolled", 20),
        ("udp_not_allowed", 50),
        ("udp allowed", 20),
        ("udp denied", 20),
        ("plain allowed", 20),
        ("permissive", 5),
        ("dns", 10),
    ] {
        assert!(share(what) >= least, "{what}: {} ‰ of {met:?}", share(what));
    }
}

proptest! {
    /// Where the engine says that nobody has to be asked about a peer, nothing that could be
    /// said changes a decision.
    #[test]
    fn attributes_that_are_not_needed_change_nothing(
        policies in generated::policies(4),
        scopes in generated_calls::scopes(),
        call in generated_calls::call(),
    ) {
        let engine = PodPolicy::new(policies, scopes, Vec::new());
        if engine.needs_attributes(call.direction, call.member) {
            return Ok(());
        }
        let asked = engine.decide(&call.flow());
        let unasked = Call {
            identity: call.identity.clone().filter(|_| call.member),
            services: Vec::new(),
            labels: Labels::new(),
            ..call.clone()
        };
        let unasked = engine.decide(&unasked.flow());
        prop_assert_eq!(asked.policy, unasked.policy);
        // The reason may be told better with an identity.
        prop_assert_eq!(asked.refused.is_none(), unasked.refused.is_none());
    }
}
