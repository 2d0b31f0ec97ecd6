//! The kernel programs of Nodemesh: this file is the list of what is attached where.
//!
//! Trust is cgroup membership. A pod that is not enrolled pays one failed look-up.
#![no_std]
#![no_main]
// `lock` instructions: see `refusal`.
#![feature(asm_experimental_arch)]

mod address;
mod bind;
mod connect;
mod context;
mod descent;
mod foreign;
mod grandfathered;
mod lookup;
mod maps;
mod names;
mod packet;
mod pod;
mod policy;
mod probe;
mod refusal;
mod release;
mod shut;
mod sockops;
mod sockopt;
mod source;
mod storage;
mod udp;
mod wall;
mod wall_in;

use aya_ebpf::macros::{
    cgroup_sock, cgroup_sock_addr, cgroup_sockopt, classifier, sk_lookup, sock_ops,
};
use aya_ebpf::programs::{
    SkLookupContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext, TcContext,
};

/// Root cgroup.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect4(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect6(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(bind4)]
fn bind4(ctx: SockAddrContext) -> i32 {
    bind::bind4(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(bind6)]
fn bind6(ctx: SockAddrContext) -> i32 {
    bind::bind6(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    foreign::sendmsg4(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    foreign::sendmsg6(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    names::getpeername4(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    names::getpeername6(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(getsockname4)]
fn getsockname4(ctx: SockAddrContext) -> i32 {
    names::getsockname4(&ctx)
}

/// Root cgroup.
#[cgroup_sock_addr(getsockname6)]
fn getsockname6(ctx: SockAddrContext) -> i32 {
    names::getsockname6(&ctx)
}

/// Root cgroup.
#[cgroup_sock(sock_release)]
fn sock_release(ctx: SockContext) -> i32 {
    release::sock_release(&ctx)
}

/// Root cgroup.
#[sock_ops]
fn tcp_events(ctx: SockOpsContext) -> u32 {
    sockops::sockops(&ctx)
}

/// The mesh's cgroup subtree.
#[cgroup_sockopt(getsockopt)]
fn getsockopt(ctx: SockoptContext) -> i32 {
    sockopt::getsockopt(&ctx)
}

/// The mesh's cgroup subtree.
#[cgroup_sockopt(setsockopt)]
fn setsockopt(ctx: SockoptContext) -> i32 {
    sockopt::setsockopt(&ctx)
}

/// Each enrolled network namespace, an instance each.
#[sk_lookup]
fn steer(ctx: SkLookupContext) -> u32 {
    lookup::steer(&ctx)
}

/// Ingress of the host's side of each pod's veth.
#[classifier]
fn wall(ctx: TcContext) -> i32 {
    wall::wall(&ctx)
}

/// Egress of the host's side of each pod's veth: what goes to the pod.
#[classifier]
fn wall_in(ctx: TcContext) -> i32 {
    wall_in::wall_in(&ctx)
}

/// Both directions of a device inside a pod's namespace that no wall can stand around.
#[classifier]
fn shut(ctx: TcContext) -> i32 {
    shut::shut(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: nothing here panics; the verifier would refuse a program that reaches this.
    unsafe { core::hint::unreachable_unchecked() }
}

/// Programs of other licences can't call the helpers used here; the kernel asks for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
