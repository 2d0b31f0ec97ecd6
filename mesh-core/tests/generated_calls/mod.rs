//! Flows, and authentication scopes, by chance.

use std::sync::Arc;

use mesh_core::policy::{AuthenticationMode, AuthenticationPolicy};
use proptest::prelude::*;

use crate::call::Call;
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
