//! Per-socket state.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use mesh_common::SocketState;

use crate::maps::SOCKETS;

/// The socket's state, if it has one.
#[inline(always)]
pub(crate) fn get(socket: *mut bpf_sock) -> Option<&'static mut SocketState> {
    lookup(socket, 0)
}

/// The socket's state, zeroed if it is new; `None` when memory is short.
#[inline(always)]
pub(crate) fn get_or_create(socket: *mut bpf_sock) -> Option<&'static mut SocketState> {
    lookup(socket, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
}

#[inline(always)]
fn lookup(socket: *mut bpf_sock, flags: u64) -> Option<&'static mut SocketState> {
    if socket.is_null() {
        return None;
    }
    let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast();
    // SAFETY: `socket` is a socket of the context, which the verifier checks, and the
    // storage lives as long as it; the socket's own calls are serialised by its lock.
    unsafe {
        bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), flags)
            .cast::<SocketState>()
            .as_mut()
    }
}
