//! `sockops`: at `TCP_CONNECT_CB` the source port is known and the connecting socket publishes
//! its tuple; at `PASSIVE_ESTABLISHED_CB` the accepting socket takes what it says into its own
//! storage. A socket that ends before cleans up at `STATE_CB`.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock,
};
use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::{
    FLOW_KIND_APP_DIAL, FLOW_KIND_CAPTURED, Flow, FlowKey, KernelReason, PodConfig,
    SOCKET_APP_ACCEPTED, SOCKET_CAPTURED, SOCKET_FROM_APP, SOCKET_WORKER, SocketState,
};

use crate::address::Address;
use crate::connect::is_own;
use crate::context::{AF_INET6, IPPROTO_TCP, field, netns_cookie, socket_cookie};
use crate::maps::FLOWS;
use crate::refusal::{self, Attempt};
use crate::{pod, probe, storage};

/// The return value has no meaning for these callbacks.
const DONE: u32 = 1;

#[inline(always)]
pub(crate) fn sockops(ctx: &SockOpsContext) -> u32 {
    let ops = ctx.ops;
    let op = field!(ops, op);
    let connecting = op == BPF_SOCK_OPS_TCP_CONNECT_CB as u32;
    let accepted = op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB as u32;
    let closed = op == BPF_SOCK_OPS_STATE_CB as u32
        && field!(ops, __bindgen_anon_1.args[1]) == BPF_TCP_CLOSE as u32;
    if !(connecting || accepted || closed) {
        return DONE;
    }
    let Some(pod) = pod::of_netns(netns_cookie(ctx)) else {
        if !accepted {
            probe::of_node(ctx, connecting);
        }
        return DONE;
    };
    let ends = Ends::of(ctx);
    if connecting {
        publish(ctx, pod, &ends);
    } else if accepted {
        take(ctx, pod, &ends);
    } else {
        clean_up(ctx, pod, &ends);
    }
    DONE
}

/// The two ends of the context's socket.
pub(crate) struct Ends {
    pub(crate) local: Address,
    pub(crate) local_port: u16,
    pub(crate) remote: Address,
    pub(crate) remote_port: u16,
}

impl Ends {
    /// An IPv6 socket with a v4-mapped peer is seen as IPv4: at `TCP_CONNECT_CB` its IPv6
    /// fields aren't all set, and its other end may be an IPv4 socket.
    #[inline(always)]
    pub(crate) fn of(ctx: &SockOpsContext) -> Self {
        let ops = ctx.ops;
        let remote6 = Address([
            field!(ops, remote_ip6[0]),
            field!(ops, remote_ip6[1]),
            field!(ops, remote_ip6[2]),
            field!(ops, remote_ip6[3]),
        ]);
        let (local, remote) = if field!(ops, family) == AF_INET6 && !remote6.is_v4() {
            let local6 = Address([
                field!(ops, local_ip6[0]),
                field!(ops, local_ip6[1]),
                field!(ops, local_ip6[2]),
                field!(ops, local_ip6[3]),
            ]);
            (local6, remote6)
        } else {
            (
                Address::v4(field!(ops, local_ip4)),
                Address::v4(field!(ops, remote_ip4)),
            )
        };
        Self {
            local,
            local_port: field!(ops, local_port) as u16,
            remote,
            // The kernel gives it in network byte order, as 32 bits.
            remote_port: u32::from_be(field!(ops, remote_port)) as u16,
        }
    }

    /// The key under which this socket, as the connecting end, publishes.
    #[inline(always)]
    pub(crate) fn as_connecting(&self) -> FlowKey {
        FlowKey {
            source: self.local.bytes(),
            destination: self.remote.bytes(),
            source_port: self.local_port,
            destination_port: self.remote_port,
        }
    }

    /// The key under which the other end published, if this socket is the accepting end.
    #[inline(always)]
    fn as_accepting(&self) -> FlowKey {
        FlowKey {
            source: self.remote.bytes(),
            destination: self.local.bytes(),
            source_port: self.remote_port,
            destination_port: self.local_port,
        }
    }
}

#[inline(always)]
pub(crate) fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    let ops = ctx.ops;
    field!(ops, __bindgen_anon_2.sk)
}

/// The socket's other end is in the same pod, over loopback: there is no path whose bandwidth is
/// to be probed, and pacing to a guess of it (bbr) only leaves the processor idle. Reno, which
/// every kernel has, is bounded by the receiver's window alone where nothing is lost.
#[inline(always)]
fn stays_in_the_pod(ctx: &SockOpsContext) {
    const TCP_CONGESTION: i32 = 13;
    let mut reno = *b"reno";
    // What can't be set stays at the node's default, which is slower and no fault.
    // SAFETY: takes this program type's context; `reno` is four readable bytes.
    let _status = unsafe {
        bpf_setsockopt(
            ctx.ops.cast(),
            IPPROTO_TCP as i32,
            TCP_CONGESTION,
            reno.as_mut_ptr().cast(),
            4,
        )
    };
}

/// Asks for the callback of the socket's changes of state.
#[inline(always)]
pub(crate) fn hear_of_its_end(ctx: &SockOpsContext) -> bool {
    let flags = BPF_SOCK_OPS_STATE_CB_FLAG as i32;
    ctx.set_cb_flags(ctx.cb_flags() as i32 | flags).is_ok()
}

#[inline(always)]
fn publish(ctx: &SockOpsContext, pod: &PodConfig, ends: &Ends) {
    let state = storage::get(socket(ctx));
    storage::mirror_to_mptcp(socket(ctx), state.as_deref());
    let Some(state) = state else {
        return;
    };
    let dial = state.kind == SOCKET_WORKER && (state.port != 0 || is_own(pod, ends.remote));
    let kind = if state.kind == SOCKET_CAPTURED {
        FLOW_KIND_CAPTURED
    } else if dial {
        FLOW_KIND_APP_DIAL
    } else {
        return;
    };
    let flow = Flow {
        cookie: socket_cookie(ctx),
        kind,
        port: state.port,
        address: state.address,
    };
    // Without the callback nobody would clean up, so nothing is published.
    let published = hear_of_its_end(ctx)
        && FLOWS
            .get(pod.slot)
            .is_some_and(|flows| flows.insert(ends.as_connecting(), flow, 0).is_ok());
    if !published {
        let attempt = Attempt {
            source: ends.local,
            source_port: ends.local_port,
            destination: ends.remote,
            destination_port: ends.remote_port,
            protocol: IPPROTO_TCP,
        };
        refusal::record(pod.slot, KernelReason::PublishFailed, &attempt);
    }
    stays_in_the_pod(ctx);
    if dial {
        // A label is for one connect.
        state.port = 0;
        state.address = [0; 16];
    }
}

#[inline(always)]
fn take(ctx: &SockOpsContext, pod: &PodConfig, ends: &Ends) {
    let Some(flows) = FLOWS.get(pod.slot) else {
        return;
    };
    let key = ends.as_accepting();
    // SAFETY: the entry is copied before it is removed below; only the connecting socket
    // removes it otherwise, and elements are freed after a grace period.
    let Some(&Flow {
        cookie,
        kind,
        port,
        address,
    }) = (unsafe { flows.get(&key) })
    else {
        return probe::accepted(socket(ctx), pod.slot, &key);
    };
    let state = SocketState {
        kind: if kind == FLOW_KIND_CAPTURED {
            SOCKET_FROM_APP
        } else {
            SOCKET_APP_ACCEPTED
        },
        port,
        address,
        local: [0; 16],
    };
    stays_in_the_pod(ctx);
    // Without storage the worker finds no original destination and refuses; the app sees
    // its worker instead of the client.
    if let Some(stored) = storage::get_or_create(socket(ctx)) {
        *stored = state;
    }
    // What fails here is only that the connecting socket has closed meanwhile.
    let _: Result<(), i32> = flows.remove(&key);
    pod::unreserve(pod.slot, cookie);
}

#[inline(always)]
fn clean_up(ctx: &SockOpsContext, pod: &PodConfig, ends: &Ends) {
    let own = socket_cookie(ctx);
    pod::unreserve(pod.slot, own);
    let Some(flows) = FLOWS.get(pod.slot) else {
        return;
    };
    let key = ends.as_connecting();
    // SAFETY: the entry is only read, before it is removed.
    if unsafe { flows.get(&key) }.is_some_and(|flow| flow.cookie == own) {
        // What fails here is only that the accepting socket took it meanwhile.
        let _: Result<(), i32> = flows.remove(&key);
    }
}
