//! `cgroup/sock_release`: a socket that reserved a place and never got to its SYN gives it
//! back. One that did is cleaned up by its state callback, which knows when the tuple ends.

use aya_ebpf::bindings::BPF_TCP_CLOSE;
use aya_ebpf::programs::SockContext;

use crate::context::{ALLOW, IPPROTO_TCP, field, netns_cookie, socket_cookie};
use crate::pod;

#[inline(always)]
pub(crate) fn sock_release(ctx: &SockContext) -> i32 {
    let sock = ctx.sock;
    if field!(sock, protocol) != IPPROTO_TCP || field!(sock, state) != BPF_TCP_CLOSE as u32 {
        return ALLOW;
    }
    if let Some(pod) = pod::of_netns(netns_cookie(ctx)) {
        pod::unreserve(pod.slot, socket_cookie(ctx));
    }
    ALLOW
}
