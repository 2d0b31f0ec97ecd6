//! Under which addresses a pod may speak: its own. Whatever its sockets, routes and sysctls
//! say, what it sends as somebody else, or claims by ARP or neighbour discovery, ends at the wall.

use aya_ebpf::programs::TcContext;
use mesh_common::{KernelReason, WallConfig};

use crate::address::Address;
use crate::packet::{ETHERNET_BYTES, PROTOCOL_ICMPV6, Packet, load};

/// ICMPv6: a neighbour advertisement, "this address is mine".
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Offset of the address in it.
const ADVERTISED: u32 = 8;

/// An ARP packet of IPv4 over Ethernet up to the sender's address.
#[repr(C)]
#[derive(Clone, Copy)]
struct ArpHeader {
    hardware: u16,
    protocol: u16,
    lengths: [u8; 2],
    operation: u16,
    sender_hardware: [u16; 3],
    sender: [u16; 2],
}

const ARP_ETHERNET: u16 = 1_u16.to_be();
const ARP_IPV4: u16 = 0x0800_u16.to_be();

/// The source must be the pod's. In IPv6 a link-local one, which no router forwards, is needed
/// to find neighbours, and the unspecified one to ask whether an address is free.
#[inline(always)]
pub(crate) fn judge(
    ctx: &TcContext,
    wall: &WallConfig,
    packet: &Packet,
) -> Result<(), KernelReason> {
    let icmpv6 = packet.v6 && packet.protocol == PROTOCOL_ICMPV6;
    let source = packet.source;
    let own = is_own(wall, source) || source.is_link_local() || (icmpv6 && source.is_unspecified());
    if !own {
        return Err(KernelReason::WallSource);
    }
    if icmpv6 && !packet.fragment && load::<u8>(ctx, packet.transport)? == NEIGHBOUR_ADVERTISEMENT {
        let advertised = Address(load(ctx, packet.transport + ADVERTISED)?);
        if !is_own(wall, advertised) && !advertised.is_link_local() {
            return Err(KernelReason::WallSource);
        }
    }
    Ok(())
}

/// The sender must be the pod, or 0.0.0.0, which asks whether an address is free.
#[inline(always)]
pub(crate) fn judge_arp(ctx: &TcContext, wall: &WallConfig) -> Result<(), KernelReason> {
    let arp: ArpHeader = load(ctx, ETHERNET_BYTES)?;
    if arp.hardware != ARP_ETHERNET || arp.protocol != ARP_IPV4 || arp.lengths != [6, 4] {
        return Err(KernelReason::WallProtocol);
    }
    let [high, low] = arp.sender.map(u16::to_ne_bytes);
    let sender = u32::from_ne_bytes([high[0], high[1], low[0], low[1]]);
    if sender == 0 || is_own(wall, Address::v4(sender)) {
        return Ok(());
    }
    Err(KernelReason::WallSource)
}

/// An address that the pod doesn't have is all zero in its config.
#[inline(always)]
fn is_own(wall: &WallConfig, address: Address) -> bool {
    !address.is_unspecified()
        && (address == Address::from_bytes(&wall.address_v4)
            || address == Address::from_bytes(&wall.address_v6))
}
