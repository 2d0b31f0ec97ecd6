//! `cgroup/connect4`, `connect6`: an app's TCP goes to its pod's worker.
//!
//! Every connect in an enrolled pod writes or clears its socket's state: a socket can be
//! connected again, and a stale original destination would send it to the wrong place.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    KernelReason, POD_CUT_OFF, POD_HAS_LISTENER_V6, POD_HAS_V4, POD_HAS_V6, PORT_OUTBOUND,
    PodConfig, SOCKET_CAPTURED, SOCKET_NONE, SOCKET_WORKER,
};

use crate::address::Address;
use crate::context::{
    ALLOW, EAGAIN, ECONNREFUSED, ENETUNREACH, ENOMEM, EPERM, IPPROTO_TCP, SocketAddress, deny,
    field,
};
use crate::refusal::{self, Attempt};
use crate::{foreign, pod, policy, probe, storage};

#[inline(always)]
pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    connect(&SocketAddress::v4(ctx))
}

#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    connect(&SocketAddress::v6(ctx))
}

#[inline(always)]
fn connect(socket: &SocketAddress) -> i32 {
    let netns = socket.netns_cookie();
    let Some(pod) = pod::of_netns(netns) else {
        probe::connect(socket, netns);
        return ALLOW;
    };
    let protocol = socket.protocol();
    let (address, port) = (socket.address(), socket.port());
    if protocol == IPPROTO_TCP && pod.flags & POD_CUT_OFF != 0 {
        return refuse(pod, KernelReason::CutOff, EPERM, address, port);
    }
    let by_worker = pod::caller_is_worker(pod);
    if !by_worker && foreign::is_refused(pod, address, port, protocol) {
        return deny(EPERM);
    }
    if protocol != IPPROTO_TCP {
        return ALLOW;
    }
    if by_worker {
        return worker_dial(socket, pod, address, port);
    }
    if pod::is_reserved(port) {
        return refuse(
            pod,
            KernelReason::ConnectReservedPort,
            ECONNREFUSED,
            address,
            port,
        );
    }
    if address.is_local() {
        clear(socket, pod);
        return ALLOW;
    }
    capture(socket, pod, address, port)
}

#[inline(always)]
fn capture(socket: &SocketAddress, pod: &PodConfig, address: Address, port: u16) -> i32 {
    if policy::denies_tcp(pod.slot, address, port) {
        return refuse(pod, KernelReason::ConnectPolicy, EPERM, address, port);
    }
    let v4 = address.is_v4();
    let needed = if v4 { POD_HAS_V4 } else { POD_HAS_V6 };
    if pod.flags & needed == 0 {
        return refuse(
            pod,
            KernelReason::ConnectNoRoute,
            ENETUNREACH,
            address,
            port,
        );
    }
    let sk = socket.socket();
    if sk.is_null() {
        return refuse(pod, KernelReason::ConnectNoStorage, ENOMEM, address, port);
    }
    if field!(sk, bound_dev_if) != 0 {
        return refuse(
            pod,
            KernelReason::ConnectBoundDevice,
            ENETUNREACH,
            address,
            port,
        );
    }
    let cookie = socket.socket_cookie();
    if !pod::reserve(pod.slot, cookie) {
        return refuse(pod, KernelReason::ConnectQuota, EAGAIN, address, port);
    }
    let Some(state) = storage::get_or_create(sk) else {
        pod::unreserve(pod.slot, cookie);
        return refuse(pod, KernelReason::ConnectNoStorage, ENOMEM, address, port);
    };
    state.kind = SOCKET_CAPTURED;
    state.port = u32::from(port);
    state.address = address.bytes();
    state.local = if v4 { pod.address_v4 } else { pod.address_v6 };
    // An IPv6 socket reaches the IPv4 listener by the mapped address.
    let to_v6 = socket.is_v6() && !v4 && pod.flags & POD_HAS_LISTENER_V6 != 0;
    socket.set_address(if to_v6 {
        Address::LOOPBACK_V6
    } else {
        Address::LOOPBACK_MAPPED
    });
    socket.set_port(PORT_OUTBOUND);
    ALLOW
}

/// The worker's connects pass. Those to its app are published at `TCP_CONNECT_CB`, for which
/// they need a place.
#[inline(always)]
fn worker_dial(socket: &SocketAddress, pod: &PodConfig, address: Address, port: u16) -> i32 {
    let Some(state) = storage::get_or_create(socket.socket()) else {
        return refuse(pod, KernelReason::ConnectNoStorage, ENOMEM, address, port);
    };
    let labelled = state.kind == SOCKET_WORKER && state.port != 0;
    if !labelled {
        state.port = 0;
        state.address = [0; 16];
    }
    state.kind = SOCKET_WORKER;
    let cookie = socket.socket_cookie();
    if labelled || is_own(pod, address) {
        if !pod::reserve(pod.slot, cookie) {
            return refuse(pod, KernelReason::ConnectQuota, EAGAIN, address, port);
        }
    } else {
        pod::unreserve(pod.slot, cookie);
    }
    ALLOW
}

/// Whether the address is one of the pod's.
#[inline(always)]
pub(crate) fn is_own(pod: &PodConfig, address: Address) -> bool {
    address == Address::from_bytes(&pod.address_v4)
        || address == Address::from_bytes(&pod.address_v6)
}

/// The socket is not ours (any more); a place that an earlier, failed connect took is given back.
#[inline(always)]
fn clear(socket: &SocketAddress, pod: &PodConfig) {
    if let Some(state) = storage::get(socket.socket()) {
        state.kind = SOCKET_NONE;
        pod::unreserve(pod.slot, socket.socket_cookie());
    }
}

#[inline(always)]
fn refuse(pod: &PodConfig, reason: KernelReason, errno: i32, address: Address, port: u16) -> i32 {
    refusal::record(pod.slot, reason, &Attempt::to(address, port, IPPROTO_TCP));
    deny(errno)
}
