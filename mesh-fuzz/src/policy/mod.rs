//! Policy as it is compiled, against policy as it is written.

mod chosen;

use mesh_core::model::Mesh;
use mesh_core::policy::PodPolicy;
use mesh_core::policy::kernel::KernelPolicy;

use crate::input::Input;
use crate::naive::Model;

/// Policies, then flows, each part chosen by a byte of the input, decided by the engine and by the
/// model that reads every policy for every flow.
pub(crate) fn decision(bytes: &[u8]) {
    let mut input = Input(bytes);
    let model = Model {
        authorizations: chosen::policies(&mut input),
        authentications: chosen::scopes(&mut input),
        resolvers: chosen::several(&mut input, 2, chosen::address),
    };
    let engine = PodPolicy::new(
        model.authorizations.clone(),
        model.authentications.clone(),
        model.resolvers.clone(),
    );
    // What it holds is `tests/kernel_policy.rs` of mesh-core; here, that it can be compiled.
    drop(KernelPolicy::new(
        &engine,
        &model.resolvers,
        &Mesh::default(),
    ));
    while !input.0.is_empty() {
        model.check(&engine, &chosen::call(&mut input));
    }
}
