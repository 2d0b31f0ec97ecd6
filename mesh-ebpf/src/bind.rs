//! `cgroup/bind4`, `bind6`: apps can't take the mesh's ports.
//!
//! Other binds of apps get `SO_REUSEADDR`: the worker's accepted sockets sit in the bind
//! bucket of the original port, and an app that starts late would find its port taken.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::KernelReason;

use crate::context::{ALLOW, EADDRINUSE, IPPROTO_TCP, SocketAddress, deny};
use crate::pod;
use crate::refusal::{self, Attempt};

const SO_REUSEADDR: i32 = 2;

#[inline(always)]
pub(crate) fn bind4(ctx: &SockAddrContext) -> i32 {
    bind(&SocketAddress::v4(ctx))
}

#[inline(always)]
pub(crate) fn bind6(ctx: &SockAddrContext) -> i32 {
    bind(&SocketAddress::v6(ctx))
}

#[inline(always)]
fn bind(socket: &SocketAddress) -> i32 {
    let Some(pod) = pod::of_netns(socket.netns_cookie()) else {
        return ALLOW;
    };
    if pod::caller_is_worker(pod) {
        return ALLOW;
    }
    let (port, protocol) = (socket.port(), socket.protocol());
    if pod::is_reserved(port) {
        let attempt = Attempt::to(socket.address(), port, protocol);
        refusal::record(pod.slot, KernelReason::BindReservedPort, &attempt);
        return deny(EADDRINUSE);
    }
    if protocol == IPPROTO_TCP && port != 0 {
        // Where it fails the app keeps the kernel's default, and may have to try again.
        let _: bool = socket.set_socket_option(SO_REUSEADDR, 1);
    }
    ALLOW
}
