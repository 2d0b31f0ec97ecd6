//! `cgroup/getpeername*`, `getsockname*`: apps see the addresses that they would see
//! without the mesh.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::{PORT_OUTBOUND, SOCKET_APP_ACCEPTED, SOCKET_CAPTURED};

use crate::address::Address;
use crate::context::{ALLOW, SocketAddress, field};
use crate::storage;

#[inline(always)]
pub(crate) fn getpeername4(ctx: &SockAddrContext) -> i32 {
    peer(&SocketAddress::v4(ctx))
}

#[inline(always)]
pub(crate) fn getpeername6(ctx: &SockAddrContext) -> i32 {
    peer(&SocketAddress::v6(ctx))
}

#[inline(always)]
pub(crate) fn getsockname4(ctx: &SockAddrContext) -> i32 {
    local(&SocketAddress::v4(ctx))
}

#[inline(always)]
pub(crate) fn getsockname6(ctx: &SockAddrContext) -> i32 {
    local(&SocketAddress::v6(ctx))
}

/// A captured socket's peer is its original destination, an accepted one's is the client.
/// State that outlived its connection (a pod that left the mesh) is told by what the
/// kernel answers: a captured socket's peer is the outbound listener.
#[inline(always)]
fn peer(name: &SocketAddress) -> i32 {
    let Some(state) = storage::get(name.socket()) else {
        return ALLOW;
    };
    let captured = state.kind == SOCKET_CAPTURED
        && name.port() == PORT_OUTBOUND
        && name.address().is_loopback();
    let accepted = state.kind == SOCKET_APP_ACCEPTED && state.port != 0;
    if captured || accepted {
        name.set_address(Address::from_bytes(&state.address));
        name.set_port(state.port as u16);
    }
    ALLOW
}

/// A captured socket's own address is its pod's; its port is real. Disconnected again
/// (`AF_UNSPEC`) it has no peer, and a loopback address that it then binds is its own.
#[inline(always)]
fn local(name: &SocketAddress) -> i32 {
    let socket = name.socket();
    let Some(state) = storage::get(socket) else {
        return ALLOW;
    };
    let connected = field!(socket, dst_port) != 0;
    if state.kind == SOCKET_CAPTURED && connected && name.address().is_loopback() {
        name.set_address(Address::from_bytes(&state.local));
    }
    ALLOW
}
