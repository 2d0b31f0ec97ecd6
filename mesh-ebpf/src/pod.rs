//! Whose network namespace this is, and whether the caller is its worker.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use mesh_common::{PodConfig, RESERVED_PORTS};

use crate::maps::{CONFIG, PENDING, PODS};

/// The enrolled pod with this netns cookie.
#[inline(always)]
pub(crate) fn of_netns(cookie: u64) -> Option<&'static PodConfig> {
    // SAFETY: the entry is read only; a concurrent replacement by the agent writes a new element.
    unsafe { PODS.get(cookie) }
}

/// The cgroup level at which each pod's worker has its cgroup.
#[inline(always)]
pub(crate) fn worker_level() -> Option<i32> {
    CONFIG.get(0).map(|c| c.mesh_cgroup_level as i32 + 1)
}

/// Whether the current task is the pod's worker.
#[inline(always)]
pub(crate) fn caller_is_worker(pod: &PodConfig) -> bool {
    let Some(level) = worker_level() else {
        return false;
    };
    // SAFETY: takes a number.
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    cgroup != 0 && cgroup == pod.worker_cgroup_id
}

/// Whether the mesh keeps this port for itself in an enrolled pod.
#[inline(always)]
pub(crate) fn is_reserved(port: u16) -> bool {
    let [a, b, c, d] = RESERVED_PORTS;
    port == a || port == b || port == c || port == d
}

/// Takes one place of the pod's quota for a socket; again for the same socket is no error.
#[inline(always)]
pub(crate) fn reserve(slot: u32, socket_cookie: u64) -> bool {
    PENDING
        .get(slot)
        .is_some_and(|pending| pending.insert(socket_cookie, 0, 0).is_ok())
}

/// Gives the place back, if the socket has one.
#[inline(always)]
pub(crate) fn unreserve(slot: u32, socket_cookie: u64) {
    if let Some(pending) = PENDING.get(slot) {
        // What fails here is only that there is no such entry.
        let _: Result<(), i32> = pending.remove(socket_cookie);
    }
}
