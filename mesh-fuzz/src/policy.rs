//! Policy as it is compiled, against policy as it is written.

use std::sync::Arc;

use mesh_core::model::Mesh;
use mesh_core::policy::kernel::KernelPolicy;
use mesh_core::policy::{AuthorizationPolicy, PodPolicy};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::generated_calls::Call;
use crate::naive::Model;
use crate::{generated, generated_calls};

/// Policies and flows, drawn by chance from the input as its seed, decided by the engine
/// and by the model that reads every policy for every flow.
pub(crate) fn decision(bytes: &[u8]) {
    let strategy = (
        generated::policies(14),
        generated_calls::scopes(),
        prop::collection::vec(generated::address(), 0..3),
        prop::collection::vec(generated_calls::call(), 6),
    );
    let mut seed = [0; 32];
    let len = bytes.len().min(seed.len());
    seed[..len].copy_from_slice(&bytes[..len]);
    let chance = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), chance);
    let Ok(tree) = strategy.new_tree(&mut runner) else {
        return;
    };
    let (policies, scopes, resolvers, calls): (Vec<Arc<AuthorizationPolicy>>, _, _, Vec<Call>) =
        tree.current();
    let engine = PodPolicy::new(
        policies.clone(),
        Vec::clone(&scopes),
        Vec::clone(&resolvers),
    );
    // What it holds is `tests/kernel_policy.rs` of mesh-core; here, that it can be compiled.
    drop(KernelPolicy::new(&engine, &resolvers, &Mesh::default()));
    let model = Model {
        authorizations: policies,
        authentications: scopes,
        resolvers,
    };
    for call in &calls {
        let flow = call.flow();
        let decision = engine.decide(&flow);
        let decided = (decision.refused, decision.policy.map(ToString::to_string));
        assert_eq!(decided, model.decide(call), "{call:?}");
        assert_eq!(engine.authentication(call.port), model.mode(call.port));
    }
}
