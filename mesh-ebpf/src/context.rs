//! Access to the contexts' fields. Each access is volatile: the verifier allows these
//! fields in one width only, and LLVM would merge or split neighbours.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;

use crate::address::Address;

/// Reads one field of a context.
macro_rules! field {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the kernel hands a valid context, and the verifier checks offset and width.
        unsafe { core::ptr::read_volatile(&raw const (*$ctx).$($field)+) }
    };
}
/// Writes one field of a context.
macro_rules! set_field {
    ($ctx:expr, $field:ident $([$i:expr])?, $value:expr) => {
        // SAFETY: the kernel hands a valid context, and the verifier checks offset and width.
        unsafe { core::ptr::write_volatile(&raw mut (*$ctx).$field $([$i])?, $value) }
    };
}
pub(crate) use {field, set_field};

pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;
pub(crate) const IPPROTO_TCP: u32 = 6;
pub(crate) const EPERM: i32 = 1;
pub(crate) const ENOMEM: i32 = 12;
pub(crate) const EAGAIN: i32 = 11;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const EADDRINUSE: i32 = 98;
pub(crate) const ENETUNREACH: i32 = 101;
pub(crate) const ECONNREFUSED: i32 = 111;
/// A cgroup program's verdict: go on.
pub(crate) const ALLOW: i32 = 1;
/// A cgroup program's verdict: fail, with `EPERM` or what [`deny`] set.
const DENY: i32 = 0;

/// The verdict that makes the system call fail with `errno`.
#[inline(always)]
pub(crate) fn deny(errno: i32) -> i32 {
    // SAFETY: takes a number. Its own failure leaves EPERM, which refuses just the same.
    let _: i32 = unsafe { bpf_set_retval(-errno) };
    DENY
}

/// A `sock_addr` context, of either family.
pub(crate) struct SocketAddress {
    ctx: *mut bpf_sock_addr,
    v6: bool,
}

impl SocketAddress {
    #[inline(always)]
    pub(crate) fn v4(ctx: &SockAddrContext) -> Self {
        let ctx = ctx.sock_addr;
        Self { ctx, v6: false }
    }

    #[inline(always)]
    pub(crate) fn v6(ctx: &SockAddrContext) -> Self {
        let ctx = ctx.sock_addr;
        Self { ctx, v6: true }
    }

    /// Whether the socket is of `AF_INET6`.
    #[inline(always)]
    pub(crate) fn is_v6(&self) -> bool {
        self.v6
    }

    #[inline(always)]
    pub(crate) fn address(&self) -> Address {
        let ctx = self.ctx;
        if !self.v6 {
            return Address::v4(field!(ctx, user_ip4));
        }
        Address([
            field!(ctx, user_ip6[0]),
            field!(ctx, user_ip6[1]),
            field!(ctx, user_ip6[2]),
            field!(ctx, user_ip6[3]),
        ])
    }

    #[inline(always)]
    pub(crate) fn set_address(&self, address: Address) {
        let ctx = self.ctx;
        if !self.v6 {
            return set_field!(ctx, user_ip4, address.as_v4());
        }
        set_field!(ctx, user_ip6[0], address.0[0]);
        set_field!(ctx, user_ip6[1], address.0[1]);
        set_field!(ctx, user_ip6[2], address.0[2]);
        set_field!(ctx, user_ip6[3], address.0[3]);
    }

    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        let ctx = self.ctx;
        u16::from_be(field!(ctx, user_port) as u16)
    }

    #[inline(always)]
    pub(crate) fn set_port(&self, port: u16) {
        let ctx = self.ctx;
        set_field!(ctx, user_port, u32::from(port.to_be()));
    }

    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        let ctx = self.ctx;
        field!(ctx, protocol)
    }

    #[inline(always)]
    pub(crate) fn socket(&self) -> *mut bpf_sock {
        let ctx = self.ctx;
        field!(ctx, __bindgen_anon_1.sk)
    }

    #[inline(always)]
    pub(crate) fn socket_cookie(&self) -> u64 {
        // SAFETY: takes this program type's context.
        unsafe { bpf_get_socket_cookie(self.ctx.cast()) }
    }

    #[inline(always)]
    pub(crate) fn netns_cookie(&self) -> u64 {
        // SAFETY: takes this program type's context.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }

    /// Sets an integer option of level `SOL_SOCKET` on the socket.
    #[inline(always)]
    pub(crate) fn set_socket_option(&self, option: i32, mut value: i32) -> bool {
        const SOL_SOCKET: i32 = 1;
        let value = (&raw mut value).cast();
        // SAFETY: takes this program type's context; `value` is four readable bytes.
        let status = unsafe {
            aya_ebpf::helpers::generated::bpf_setsockopt(
                self.ctx.cast(),
                SOL_SOCKET,
                option,
                value,
                4,
            )
        };
        status == 0
    }
}

/// The netns cookie of any context that has one.
#[inline(always)]
pub(crate) fn netns_cookie<C: EbpfContext>(ctx: &C) -> u64 {
    // SAFETY: takes the program's context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The socket cookie of any context that has one.
#[inline(always)]
pub(crate) fn socket_cookie<C: EbpfContext>(ctx: &C) -> u64 {
    // SAFETY: takes the program's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
