//! Per-socket state.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock};
use mesh_common::{SOCKET_NONE, SocketState};

use crate::maps::{MPTCP, SOCKETS};

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

/// Copies the state of a subflow to the MPTCP socket that the app has: connects and their
/// callbacks see the one, `getpeername` and `getsockname` the other.
#[inline(always)]
pub(crate) fn mirror_to_mptcp(subflow: *mut bpf_sock, state: Option<&SocketState>) {
    // SAFETY: a static that the loader has set; volatile, as the compiler believes its initial value.
    let mptcp = unsafe { core::ptr::read_volatile(&raw const MPTCP) };
    if mptcp == 0 || subflow.is_null() {
        return;
    }
    // SAFETY: `subflow` is a socket of the context; the result is null for plain TCP.
    let socket = unsafe { bpf_skc_to_mptcp_sock(subflow.cast()) };
    let socket = socket.cast::<bpf_sock>();
    match state {
        Some(state) => {
            // Without memory the app sees its worker's address; the flow is right all the same.
            if let Some(mirrored) = get_or_create(socket) {
                *mirrored = *state;
            }
        }
        None => {
            if let Some(mirrored) = get(socket) {
                mirrored.kind = SOCKET_NONE;
            }
        }
    }
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
