//! `cgroup/getsockopt`, `setsockopt` on the mesh's subtree: `SO_ORIGINAL_DST` answers from
//! socket storage; `SO_CLIENT_LABEL` says for whom a worker dials its app.

use aya_ebpf::programs::SockoptContext;
use mesh_common::{
    ClientLabel, SO_CLIENT_LABEL, SO_ORIGINAL_DST, SOCKET_FROM_APP, SOCKET_WORKER, SOL_NODEMESH,
    SocketState,
};

use crate::address::Address;
use crate::context::{ALLOW, EINVAL, ENOMEM, deny, field, set_field};
use crate::{context, storage};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
const SOCKADDR_IN_BYTES: usize = 16;
const SOCKADDR_IN6_BYTES: usize = 28;

/// `struct sockaddr_in6`; the first 8 bytes are those of `sockaddr_in`.
#[repr(C)]
struct SocketAddressV6 {
    family: u16,
    port: u16,
    flow_info: u32,
    address: [u32; 4],
    scope: u32,
}

#[inline(always)]
pub(crate) fn getsockopt(ctx: &SockoptContext) -> i32 {
    let opt = ctx.sockopt;
    let level = field!(opt, level);
    if field!(opt, optname) != SO_ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
        return ALLOW;
    }
    let Some(state) = storage::get(field!(opt, __bindgen_anon_1.sk)) else {
        return ALLOW;
    };
    if state.kind != SOCKET_FROM_APP {
        return ALLOW;
    }
    answer(ctx, level, state);
    ALLOW
}

/// Writes the address, or leaves the kernel's own error (no such option) where it doesn't fit.
#[inline(always)]
fn answer(ctx: &SockoptContext, level: i32, state: &SocketState) {
    let opt = ctx.sockopt;
    let start: *mut u8 = field!(opt, __bindgen_anon_2.optval).cast();
    let end: *mut u8 = field!(opt, __bindgen_anon_3.optval_end).cast();
    let address = Address::from_bytes(&state.address);
    let port = (state.port as u16).to_be();
    if level == SOL_IP {
        // SAFETY: pointer arithmetic for the verifier's bounds check, nothing is accessed.
        if !address.is_v4() || unsafe { start.add(SOCKADDR_IN_BYTES) } > end {
            return;
        }
        // SAFETY: in bounds by the check above; sockaddr_in is family, port, address, zeros.
        unsafe {
            start.cast::<u16>().write(context::AF_INET as u16);
            start.add(2).cast::<u16>().write(port);
            start.add(4).cast::<u32>().write(address.as_v4());
            start.add(8).cast::<u32>().write(0);
            start.add(12).cast::<u32>().write(0);
        }
        set_field!(opt, retval, 0);
        set_field!(opt, optlen, SOCKADDR_IN_BYTES as i32);
        return;
    }
    // SAFETY: as above.
    if unsafe { start.add(SOCKADDR_IN6_BYTES) } > end {
        return;
    }
    let value = SocketAddressV6 {
        family: context::AF_INET6 as u16,
        port,
        flow_info: 0,
        address: address.0,
        scope: 0,
    };
    // SAFETY: in bounds by the check above.
    unsafe { start.cast::<SocketAddressV6>().write(value) };
    set_field!(opt, retval, 0);
    set_field!(opt, optlen, SOCKADDR_IN6_BYTES as i32);
}

#[inline(always)]
pub(crate) fn setsockopt(ctx: &SockoptContext) -> i32 {
    let opt = ctx.sockopt;
    if field!(opt, level) != SOL_NODEMESH || field!(opt, optname) != SO_CLIENT_LABEL {
        return ALLOW;
    }
    let start: *mut ClientLabel = field!(opt, __bindgen_anon_2.optval).cast();
    let end: *mut ClientLabel = field!(opt, __bindgen_anon_3.optval_end).cast();
    // SAFETY: pointer arithmetic for the verifier's bounds check, nothing is accessed.
    if unsafe { start.add(1) } > end {
        return deny(EINVAL);
    }
    // SAFETY: in bounds by the check above.
    let label = unsafe { start.read() };
    let Some(state) = storage::get_or_create(field!(opt, __bindgen_anon_1.sk)) else {
        return deny(ENOMEM);
    };
    if state.kind == SOCKET_FROM_APP || label.port == 0 || label.port > 0xffff {
        return deny(EINVAL);
    }
    state.kind = SOCKET_WORKER;
    state.address = label.address;
    state.port = label.port;
    // Handled: the kernel's own setsockopt isn't called.
    set_field!(opt, optlen, -1);
    ALLOW
}
