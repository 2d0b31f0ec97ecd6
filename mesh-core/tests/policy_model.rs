//! The policy engine against a model that reads every policy for every flow, as the
//! documentation of the types has it.

mod call;
mod generated;
mod generated_calls;
mod naive;
mod universe;

use std::cell::RefCell;
use std::collections::BTreeMap;

use mesh_core::policy::{Direction, Labels, PodPolicy, Protocol};
use mesh_core::reason::Reason;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use call::Call;
use naive::Model;

/// Sets of policies, and flows decided by each: together more than 100,000 decisions.
const SETS: u32 = 30_000;
const FLOWS: usize = 6;

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
            let expected = model.check(&engine, call);
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
