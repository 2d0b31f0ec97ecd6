//! Whether this agent can enrol pods: one word for `/readyz`, and for control.

use super::shared::Shared;

/// What is in the way of enrolling pods; `None` where the agent is ready: discovery is known, and
/// container runtimes ask for it.
pub(super) fn lacks(shared: &Shared) -> Option<String> {
    if !shared.discovery.synced() {
        let why = shared.control.report().last_error;
        return Some(format!("discovery is not known yet: {why}"));
    }
    let fault = shared.cni_fault.borrow();
    let fault = fault.as_ref()?;
    Some(format!("the CNI plugin is not in place: {fault}"))
}
