//! UDP, which no worker carries: it passes where the pod's policy allows it, in both
//! directions by the same test, since an answer is its question mirrored.

use aya_ebpf::programs::TcContext;
use mesh_common::{KernelReason, POLICY_UDP_IN, POLICY_UDP_OUT};

use crate::address::Address;
use crate::packet::Packet;
use crate::policy;
use crate::wall::Refused;

/// Judges a datagram that leaves the pod.
#[inline(always)]
pub(crate) fn judge_out(ctx: &TcContext, slot: u32, packet: &Packet) -> Result<(), Refused> {
    let (source, destination) = ports(ctx, packet)?;
    let judged = judge(packet, slot, packet.destination, destination, source);
    judged.map_err(|refused| refused.with_ports(source, destination))
}

/// Judges a datagram that comes to the pod.
#[inline(always)]
pub(crate) fn judge_in(ctx: &TcContext, slot: u32, packet: &Packet) -> Result<(), Refused> {
    let (source, destination) = ports(ctx, packet)?;
    let judged = judge(packet, slot, packet.source, source, destination);
    judged.map_err(|refused| refused.with_ports(source, destination))
}

#[inline(always)]
fn ports(ctx: &TcContext, packet: &Packet) -> Result<(u16, u16), Refused> {
    if packet.headless {
        return Ok((0, 0));
    }
    packet
        .udp_ports(ctx)
        .map_err(|reason| Refused::of(reason, packet))
}

/// A later fragment has no ports. It passes where any UDP with its remote may, and is of use
/// there only together with a first fragment, which has all of UDP's header and is judged by it.
#[inline(always)]
fn judge(
    packet: &Packet,
    slot: u32,
    remote: Address,
    remote_port: u16,
    local_port: u16,
) -> Result<(), Refused> {
    let mut refused = Refused::of(KernelReason::WallUdp, packet);
    let Some(block) = policy::block(slot, remote) else {
        return Err(refused);
    };
    let passes = if packet.headless {
        block.allows_some_udp()
    } else {
        block.allows(POLICY_UDP_OUT, remote_port) || block.allows(POLICY_UDP_IN, local_port)
    };
    if passes {
        return Ok(());
    }
    refused.audited = block.is_audit();
    Err(refused)
}
