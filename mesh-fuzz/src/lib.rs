//! What must hold whatever bytes come in, one function for each thing that reads what others
//! worded. libFuzzer calls them from `fuzz/fuzz_targets/`, and `tests/corpus.rs` with every file
//! that it has kept (`fuzz/corpus/<target>/`). `docs/FUZZING.md` says what each is for.
//!
//! A target panics where something does not hold; what is merely refused is fine.
#![forbid(unsafe_code)]

mod channel;
mod control;
mod identity;
mod input;
mod logs;
mod node;
mod policy;
mod runtime;
mod signing;

// The model of the property tests, and their universe: one opinion.
#[path = "../../mesh-core/tests/call/mod.rs"]
mod call;
#[path = "../../mesh-core/tests/naive/mod.rs"]
mod naive;
#[path = "../../mesh-core/tests/universe/mod.rs"]
mod universe;

/// A target: its name, which is that of its corpus folder, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by name.
pub const TARGETS: &[Target] = &[
    ("admin_requests", control::admin_requests),
    ("certificate", identity::certificate),
    ("certificate_request", signing::certificate_request),
    ("channel", channel::channel),
    ("csr", control::csr),
    ("discovery_requests", control::discovery_requests),
    ("discovery_responses", node::discovery_responses),
    ("hbone_request", node::hbone_request),
    ("health_answer", node::health_answer),
    ("join_request", control::join_request),
    ("kept_files", node::kept_files),
    ("kernel_event", node::kernel_event),
    ("manifests", control::manifests),
    ("netlink_messages", node::netlink_messages),
    ("node_report", control::node_report),
    ("peer_settings", node::peer_settings),
    ("policy_decision", policy::decision),
    ("port_tables", node::port_tables),
    ("signed_chain", node::signed_chain),
    ("spiffe_id", identity::spiffe_id),
    ("supervisor_messages", node::supervisor_messages),
    ("worker_messages", node::worker_messages),
];

/// Runs one target.
///
/// # Panics
/// If there is no such target, or where something does not hold.
pub fn run(target: &str, bytes: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, run) = found.unwrap_or_else(|| panic!("no target is called {target:?}"));
    run(bytes);
}
