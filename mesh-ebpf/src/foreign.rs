//! Who uses an enrolled pod's network: a process of its own, or another that would pass for one.
//! Such a one is counted and told of, and refused where the pod's owner says so.
//!
//! A pod's processes are in the pod's own cgroup. Whoever comes into its network namespace from
//! elsewhere (a port-forward, `nsenter`) is not; whoever is put into one of its containers (an
//! exec) is, and is told by its descent.

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_ktime_get_ns,
};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    EVENT_AUDITED, ForeignEvent, KernelReason, OWN_KNOWN, OWN_REFUSE_ENTERED, OWN_REFUSE_FOREIGN,
    OWN_TELL_ENTERED, OwnProcesses, PodConfig,
};

use crate::address::Address;
use crate::context::{ALLOW, EPERM, SocketAddress, deny};
use crate::maps::{FOREIGN, PROCESSES};
use crate::{descent, pod, refusal};

#[inline(always)]
pub(crate) fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    sendmsg(&SocketAddress::v4(ctx))
}

#[inline(always)]
pub(crate) fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    sendmsg(&SocketAddress::v6(ctx))
}

/// UDP of sockets that are not connected: those that are have passed `connect`.
#[inline(always)]
fn sendmsg(socket: &SocketAddress) -> i32 {
    let Some(pod) = pod::of_netns(socket.netns_cookie()) else {
        return ALLOW;
    };
    let (address, port) = (socket.address(), socket.port());
    if !pod::caller_is_worker(pod) && is_refused(pod, address, port, socket.protocol()) {
        return deny(EPERM);
    }
    ALLOW
}

/// Whether the current process, which is not the pod's worker, may not use the pod's network.
#[inline(always)]
pub(crate) fn is_refused(pod: &PodConfig, address: Address, port: u16, protocol: u32) -> bool {
    let Some(own) = PROCESSES.get(pod.slot) else {
        return false;
    };
    if own.flags & OWN_KNOWN == 0 {
        return false;
    }
    let (reason, refuse) = if !is_below(own) {
        (KernelReason::ForeignProcess, OWN_REFUSE_FOREIGN)
    } else if own.flags & OWN_TELL_ENTERED != 0 && descent::has_entered() {
        (KernelReason::EnteredProcess, OWN_REFUSE_ENTERED)
    } else {
        return false;
    };
    let refused = own.flags & refuse != 0;
    let reason = reason as u32;
    if refused {
        refusal::count(pod.slot, reason);
    } else {
        refusal::count_audited(pod.slot, reason);
    }
    let flags = if refused { 0 } else { EVENT_AUDITED };
    report(pod.slot, reason, flags, address, port, protocol);
    refused
}

/// Whether the current process is in the pod's cgroup, or below it.
#[inline(always)]
fn is_below(own: &OwnProcesses) -> bool {
    // SAFETY: takes a number.
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(own.cgroup_level as i32) };
    cgroup == own.cgroup_id
}

#[inline(always)]
fn report(slot: u32, reason: u32, flags: u8, destination: Address, port: u16, protocol: u32) {
    // SAFETY: takes nothing.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let Some(budget) = refusal::take_budget(slot, time_ns) else {
        return;
    };
    let event = ForeignEvent {
        time_ns,
        // SAFETY: takes nothing.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        destination: destination.bytes(),
        // The kernel has a name of every process; the buffer is as long as it wants.
        command: bpf_get_current_comm().unwrap_or([0; 16]),
        reason,
        slot,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        suppressed: budget.suppressed,
        destination_port: port,
        protocol: protocol as u8,
        flags,
    };
    refusal::settle_budget(budget, FOREIGN.output(&event, 0).is_ok());
}
