//! `sk_lookup`, one instance per enrolled namespace: inbound TCP goes to the worker's
//! plaintext listener, whatever its port, and nowhere when there is none.

use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_REPLACE, sk_action::SK_DROP, sk_action::SK_PASS};
use aya_ebpf::programs::SkLookupContext;
use mesh_common::{
    FLOW_KIND_APP_DIAL, FlowKey, KernelReason, LISTENER_PLAINTEXT_V4, LISTENER_PLAINTEXT_V6,
    LISTENERS_PER_POD, PORT_HBONE,
};

use crate::address::Address;
use crate::context::{AF_INET6, IPPROTO_TCP, field};
use crate::maps::{FLOWS, LISTENERS, SLOT};
use crate::probe;
use crate::refusal::{self, Attempt};

/// Index of `lo` in every namespace.
const LOOPBACK_IFINDEX: u32 = 1;
/// What the sockmap says of an empty place; no error of `bpf_sk_assign`.
const ENOENT: i32 = 2;

#[inline(always)]
pub(crate) fn steer(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    let local_port = field!(lookup, local_port) as u16;
    if field!(lookup, protocol) != IPPROTO_TCP
        || field!(lookup, ingress_ifindex) == LOOPBACK_IFINDEX
        || local_port == PORT_HBONE
    {
        return SK_PASS;
    }
    // SAFETY: a static that the loader has set; volatile, as the compiler believes its initial value.
    let slot = unsafe { core::ptr::read_volatile(&raw const SLOT) };
    let v6 = field!(lookup, family) == AF_INET6;
    // Read in any case: of one read in each branch LLVM makes one at a variable offset, which
    // the verifier refuses.
    let (remote_v4, local_v4) = (field!(lookup, remote_ip4), field!(lookup, local_ip4));
    let (remote, local) = if v6 {
        (
            Address([
                field!(lookup, remote_ip6[0]),
                field!(lookup, remote_ip6[1]),
                field!(lookup, remote_ip6[2]),
                field!(lookup, remote_ip6[3]),
            ]),
            Address([
                field!(lookup, local_ip6[0]),
                field!(lookup, local_ip6[1]),
                field!(lookup, local_ip6[2]),
                field!(lookup, local_ip6[3]),
            ]),
        )
    } else {
        (Address::v4(remote_v4), Address::v4(local_v4))
    };
    let remote_port = u16::from_be(field!(lookup, remote_port));
    let key = FlowKey {
        source: remote.bytes(),
        destination: local.bytes(),
        source_port: remote_port,
        destination_port: local_port,
    };
    if is_app_dial(slot, &key) || probe::is_for(slot, &key) {
        return SK_PASS;
    }
    let kind = if v6 {
        LISTENER_PLAINTEXT_V6
    } else {
        LISTENER_PLAINTEXT_V4
    };
    let listener = slot * LISTENERS_PER_POD + kind;
    // Of several programs' choices the last counts, and a drop counts for nothing beside one:
    // what a program before this one has chosen is overruled.
    let flags = u64::from(BPF_SK_LOOKUP_F_REPLACE);
    let reason = match LISTENERS.redirect_sk_lookup(ctx, listener, flags) {
        Ok(()) => return SK_PASS,
        Err(e) if e == -ENOENT => KernelReason::LookupNoListener,
        Err(_) => KernelReason::LookupAssignFailed,
    };
    let attempt = Attempt {
        source: remote,
        source_port: remote_port,
        destination: local,
        destination_port: local_port,
        protocol: IPPROTO_TCP,
    };
    refusal::record(slot, reason, &attempt);
    SK_DROP
}

/// Whether the worker itself is dialling its app: it says so with the full tuple, since its
/// dials arrive on the device of the pod's address, like an outside call.
#[inline(always)]
fn is_app_dial(slot: u32, key: &FlowKey) -> bool {
    FLOWS.get(slot).is_some_and(|flows| {
        // SAFETY: the entry is only read.
        unsafe { flows.get(key) }.is_some_and(|flow| flow.kind == FLOW_KIND_APP_DIAL)
    })
}
