//! Connections that an app had open when its pod was enrolled: the wall knows their sockets by
//! cookie, which the kernel gives once and nothing that an app does can change.

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::TcContext;
use mesh_common::KernelReason;

use crate::address::Address;
use crate::maps::GRANDFATHERED;
use crate::packet::{Packet, Segment};

/// What becomes of a segment of such a socket; `None` where it is of another. A request's and a
/// `TIME_WAIT`'s cookie is that of the connection's socket.
#[inline(always)]
pub(crate) fn judge(
    ctx: &TcContext,
    slot: u32,
    packet: &Packet,
    segment: &Segment,
) -> Option<Result<(), KernelReason>> {
    let connections = GRANDFATHERED.get(slot)?;
    // SAFETY: takes the program's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    // SAFETY: the entry is only read; the agent alone writes it.
    let connection = unsafe { connections.get(cookie) }?;
    let tuple = &connection.tuple;
    let own = tuple.source_port == segment.source_port
        && tuple.destination_port == segment.destination_port
        && Address::from_bytes(&tuple.source) == packet.source
        && Address::from_bytes(&tuple.destination) == packet.destination;
    if !own {
        return Some(Err(KernelReason::WallTupleMismatch));
    }
    // SAFETY: takes nothing.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if now_ns >= connection.until_ns {
        return Some(Err(KernelReason::WallGrandfatherEnded));
    }
    Some(Ok(()))
}
