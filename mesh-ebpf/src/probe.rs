//! Kubelet's probes of pods, which go past the worker to the app.
//!
//! Kubelet is told by its cgroup when it connects, and its connection by its socket: the socket's
//! storage remembers the port of a pod that it dials, the tuple is published when the source port is
//! known (`PROBES`), the wall lets a SYN of that tuple to the pod from no other socket, `sk_lookup`
//! leaves it to the app, and the app's end takes the tuple over. From then on the wall knows that
//! socket, and the tuple is good for nothing. A kubelet's socket that ends before takes it back.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_socket_cookie};
use aya_ebpf::programs::{SockOpsContext, TcContext};
use mesh_common::{
    FlowKey, GlobalConfig, KernelReason, Probe, ProbePort, SOCKET_NONE, SOCKET_PROBE,
    SOCKET_PROBE_ACCEPTED,
};

use crate::address::Address;
use crate::context::{IPPROTO_TCP, SocketAddress, field, socket_cookie};
use crate::maps::{CONFIG, PROBE_PORTS, PROBED, PROBES};
use crate::packet::{Packet, Segment, TCP_ACK, TCP_SYN, load};
use crate::refusal::{self, Attempt};
use crate::sockops::{Ends, hear_of_its_end, socket};
use crate::storage;
use crate::wall::Refused;

/// Offset of the flags in a TCP header.
const FLAGS: u32 = 13;

/// A connect in a namespace that is no pod's of the mesh: kubelet's to a port that a pod declares is
/// remembered with its socket. Every other connect of the node's clears that: a socket can be handed
/// on, and connected again.
#[inline(always)]
pub(crate) fn connect(dialling: &SocketAddress, netns_cookie: u64) {
    let Some(config) = CONFIG.get(0) else {
        return;
    };
    let on = config.kubelet_cgroup_id != 0 && config.node_netns_cookie == netns_cookie;
    if !on || dialling.protocol() != IPPROTO_TCP {
        return;
    }
    let (address, port) = (dialling.address(), dialling.port());
    let sk = dialling.socket();
    if caller_is_kubelet(config) && slot_of(address, port).is_some() {
        // Without memory the connection is no probe, and the pod's worker decides on it.
        if let Some(state) = storage::get_or_create(sk) {
            state.kind = SOCKET_PROBE;
            state.port = u32::from(port);
            state.address = address.bytes();
        }
    } else if let Some(state) = storage::get(sk) {
        state.kind = SOCKET_NONE;
    }
}

/// Whether the current task is in kubelet's cgroup, or in one below it.
#[inline(always)]
fn caller_is_kubelet(config: &GlobalConfig) -> bool {
    // SAFETY: takes a number.
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(config.kubelet_cgroup_level as i32) };
    cgroup != 0 && cgroup == config.kubelet_cgroup_id
}

/// The slot of the pod that declares this port.
#[inline(always)]
fn slot_of(address: Address, port: u16) -> Option<u32> {
    let key = ProbePort {
        address: address.bytes(),
        port: u32::from(port),
    };
    // SAFETY: the entry is only read.
    unsafe { PROBE_PORTS.get(&key) }.copied()
}

/// A socket outside of the mesh's pods is about to send its SYN (`connecting`), or has ended.
#[inline(always)]
pub(crate) fn of_node(ctx: &SockOpsContext, connecting: bool) {
    let Some(state) = storage::get(socket(ctx)) else {
        return;
    };
    if state.kind != SOCKET_PROBE {
        return;
    }
    let ends = Ends::of(ctx);
    let key = ends.as_connecting();
    let cookie = socket_cookie(ctx);
    if !connecting {
        // SAFETY: the entry is only read, before it is removed.
        if unsafe { PROBES.get(&key) }.is_some_and(|probe| probe.cookie == cookie) {
            // What fails here is only that the app's end took it meanwhile.
            let _: Result<(), i32> = PROBES.remove(&key);
        }
        return;
    }
    // A program that ran after ours may have sent it elsewhere.
    let as_dialled = state.port == u32::from(ends.remote_port)
        && Address::from_bytes(&state.address) == ends.remote;
    let Some(slot) = slot_of(ends.remote, ends.remote_port).filter(|_| as_dialled) else {
        return;
    };
    let probe = Probe {
        cookie,
        slot,
        reserved: 0,
    };
    // Without the callback nobody would take it back.
    if hear_of_its_end(ctx) && PROBES.insert(key, probe, 0).is_ok() {
        return;
    }
    let attempt = Attempt {
        source: ends.local,
        source_port: ends.local_port,
        destination: ends.remote,
        destination_port: ends.remote_port,
        protocol: IPPROTO_TCP,
    };
    refusal::record(slot, KernelReason::ProbeNoRoom, &attempt);
}

/// Whether a probe of this tuple is on its way to the pod.
#[inline(always)]
pub(crate) fn is_for(slot: u32, key: &FlowKey) -> bool {
    // SAFETY: the entry is only read.
    unsafe { PROBES.get(key) }.is_some_and(|probe| probe.slot == slot)
}

/// A socket of a pod's has accepted a connection that is none of its worker's: if it is a probe, its
/// packets may leave. Without storage they can't, and the probe fails.
#[inline(always)]
pub(crate) fn accepted(sk: *mut bpf_sock, slot: u32, key: &FlowKey) {
    if !is_for(slot, key) {
        return;
    }
    if let Some(state) = storage::get_or_create(sk) {
        state.kind = SOCKET_PROBE_ACCEPTED;
        state.port = u32::from(key.source_port);
        state.address = key.source;
        state.local = [0; 16];
    }
    // What fails here is only that kubelet's socket has ended meanwhile.
    let _: Result<(), i32> = PROBES.remove(key);
    if let Some(count) = PROBED.get_ptr_mut(slot) {
        // SAFETY: an aligned u64 of the map.
        unsafe { refusal::increment(count) };
    }
}

/// Whether a segment that leaves a pod is of a socket that has accepted a probe, and goes to kubelet.
#[inline(always)]
pub(crate) fn is_answer(ctx: &TcContext, packet: &Packet, segment: &Segment) -> bool {
    let skb = ctx.skb.skb;
    let sk: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    storage::get(sk).is_some_and(|state| {
        state.kind == SOCKET_PROBE_ACCEPTED
            && state.port == u32::from(segment.destination_port)
            && Address::from_bytes(&state.address) == packet.destination
    })
}

/// Whether a segment that leaves a pod is the SYN+ACK to a probe that is on its way: there is no
/// full socket yet.
#[inline(always)]
pub(crate) fn is_greeting(slot: u32, packet: &Packet, segment: &Segment) -> bool {
    const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
    if segment.flags & SYN_ACK != SYN_ACK {
        return false;
    }
    let key = FlowKey {
        source: packet.destination.bytes(),
        destination: packet.source.bytes(),
        source_port: segment.destination_port,
        destination_port: segment.source_port,
    };
    is_for(slot, &key)
}

/// Judges TCP that comes to a pod: of a probe's tuple a SYN is let through from kubelet's socket
/// alone. What begins a connection can't be told in the pod's namespace by who sent it, and whoever
/// forges the addresses needs it.
#[inline(always)]
pub(crate) fn judge_in(ctx: &TcContext, slot: u32, packet: &Packet) -> Result<(), Refused> {
    // The kernel refuses what is too short for this, and of a fragment kubelet's SYN is none.
    let flags = load::<u8>(ctx, packet.transport + FLAGS).unwrap_or_default();
    if packet.headless || flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
        return Ok(());
    }
    let Ok(segment) = packet.segment(ctx) else {
        return Ok(());
    };
    let key = FlowKey {
        source: packet.source.bytes(),
        destination: packet.destination.bytes(),
        source_port: segment.source_port,
        destination_port: segment.destination_port,
    };
    // SAFETY: the entry is only read.
    let Some(probe) = (unsafe { PROBES.get(&key) }) else {
        return Ok(());
    };
    // SAFETY: takes the program's context.
    let sender = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    if probe.slot == slot && sender != 0 && sender == probe.cookie {
        return Ok(());
    }
    let refused = Refused::of(KernelReason::WallProbe, packet);
    Err(refused.with_ports(segment.source_port, segment.destination_port))
}
