//! tc egress on the host's side of the pod's veth: of what goes to the pod, UDP passes where
//! policy allows it, TCP and ICMP pass (`sk_lookup` steers the one, the kernel answers the
//! other), and no other protocol does: none of them may leave either. Of TCP only that is looked at
//! which `sk_lookup` can't see: which socket a probe of kubelet's comes from.

use aya_ebpf::programs::TcContext;
use mesh_common::{KernelReason, WallConfig};

use crate::packet::{
    Kind, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet, parse,
};
use crate::wall::{self, Refused};
use crate::{probe, udp};

#[inline(always)]
pub(crate) fn wall_in(ctx: &TcContext) -> i32 {
    wall::decide(ctx, judge)
}

#[inline(always)]
fn judge(ctx: &TcContext, wall: &WallConfig) -> Result<(), Refused> {
    let frame = parse(ctx).map_err(Refused::unparsed)?;
    wall::check_cut_off(wall, &frame)?;
    match frame.kind {
        Kind::Arp | Kind::Other => Ok(()),
        Kind::Ip => judge_packet(ctx, wall, &frame.packet),
    }
}

#[inline(always)]
fn judge_packet(ctx: &TcContext, wall: &WallConfig, packet: &Packet) -> Result<(), Refused> {
    match packet.protocol {
        PROTOCOL_TCP => probe::judge_in(ctx, wall.slot, packet),
        PROTOCOL_UDP => udp::judge_in(ctx, wall.slot, packet),
        PROTOCOL_ICMP if !packet.v6 => Ok(()),
        PROTOCOL_ICMPV6 if packet.v6 => Ok(()),
        // A fragment whose first header hides what follows.
        _ if packet.fragment => Err(Refused::of(KernelReason::WallFragment, packet)),
        _ => Err(Refused::of(KernelReason::WallProtocol, packet)),
    }
}
