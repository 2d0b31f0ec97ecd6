//! Frames as the walls read them: from the bytes, never from what the sender claimed
//! about them (`skb->protocol`).

use aya_ebpf::programs::TcContext;
use mesh_common::KernelReason;

use crate::address::Address;
use crate::context::field;

pub(crate) const ETHERNET_BYTES: u32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_PROVIDER_VLAN: u16 = 0x88a8;

/// More fragments, or an offset.
const IPV4_FRAGMENT: u16 = 0x3fff;
const IPV4_OFFSET: u16 = 0x1fff;
/// An offset, or more fragments.
const IPV6_FRAGMENT: u16 = 0xfff9;
const IPV6_OFFSET: u16 = 0xfff8;
/// Extension headers that are followed; no sane packet has more.
const EXTENSION_HEADERS: usize = 6;

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const PROTOCOL_ICMPV6: u8 = 58;
const HEADER_HOP_BY_HOP: u8 = 0;
const HEADER_FRAGMENT: u8 = 44;
const HEADER_DESTINATION: u8 = 60;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Address resolution: not routed anywhere.
    Arp,
    /// Neither that nor IP, and no VLAN tag.
    Other,
    /// An IP packet.
    Ip,
}

/// A frame. Its packet is there whatever it carries: of an enum that has one only sometimes,
/// the compiler may move what was never written before the branch that tells, and the verifier
/// refuses the move.
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    /// All zero unless the frame carries IP.
    pub(crate) packet: Packet,
}

impl Frame {
    #[inline(always)]
    const fn without_packet(kind: Kind) -> Self {
        Self {
            kind,
            packet: Packet {
                v6: false,
                source: Address::UNSPECIFIED,
                destination: Address::UNSPECIFIED,
                protocol: 0,
                fragment: false,
                headless: false,
                transport: 0,
                end: 0,
            },
        }
    }

    #[inline(always)]
    const fn ip(packet: Packet) -> Self {
        Self {
            kind: Kind::Ip,
            packet,
        }
    }
}

/// An IP packet up to its transport.
pub(crate) struct Packet {
    pub(crate) v6: bool,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) protocol: u8,
    pub(crate) fragment: bool,
    /// Not the first fragment: the transport's header is in another.
    pub(crate) headless: bool,
    /// Offset of the transport's header in the frame.
    pub(crate) transport: u32,
    /// Where the IP packet ends in the frame, by its own header.
    pub(crate) end: u32,
}

/// An IPv4 header without its options.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4Header {
    version_length: u8,
    service: u8,
    total: u16,
    identification: u16,
    offset: u16,
    lifetime: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// The fixed IPv6 header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6Header {
    version_class: u8,
    class_label: u8,
    label: u16,
    payload: u16,
    next: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// A TCP header without its options.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpHeader {
    source_port: u16,
    destination_port: u16,
    sequence: u32,
    acknowledgement: u32,
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// What the wall judges a TCP segment by.
pub(crate) struct Segment {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) flags: u8,
    /// Offset of the first option in the frame.
    pub(crate) options: u32,
    /// Offset of the payload in the frame.
    pub(crate) payload: u32,
}

pub(crate) const TCP_FIN: u8 = 0x01;
pub(crate) const TCP_SYN: u8 = 0x02;
pub(crate) const TCP_RST: u8 = 0x04;
pub(crate) const TCP_PSH: u8 = 0x08;
pub(crate) const TCP_ACK: u8 = 0x10;
pub(crate) const TCP_URG: u8 = 0x20;

/// Reads a frame, or says why it can't pass whatever it is.
#[inline(always)]
pub(crate) fn parse(ctx: &TcContext) -> Result<Frame, KernelReason> {
    let skb = ctx.skb.skb;
    if field!(skb, vlan_present) != 0 {
        return Err(KernelReason::WallProtocol);
    }
    match u16::from_be(load(ctx, 12)?) {
        ETHERTYPE_ARP => Ok(Frame::without_packet(Kind::Arp)),
        ETHERTYPE_IPV4 => Ok(Frame::ip(parse_v4(ctx)?)),
        ETHERTYPE_IPV6 => Ok(Frame::ip(parse_v6(ctx)?)),
        // The pod's device is no trunk, and the kernel takes a tag of VLAN 0 for none.
        ETHERTYPE_VLAN | ETHERTYPE_PROVIDER_VLAN => Err(KernelReason::WallProtocol),
        _ => Ok(Frame::without_packet(Kind::Other)),
    }
}

#[inline(always)]
fn parse_v4(ctx: &TcContext) -> Result<Packet, KernelReason> {
    let ip: Ipv4Header = load(ctx, ETHERNET_BYTES)?;
    let header = u32::from(ip.version_length & 0xf) * 4;
    if ip.version_length >> 4 != 4 || header < size_of::<Ipv4Header>() as u32 {
        return Err(KernelReason::WallUnparsable);
    }
    let offset = u16::from_be(ip.offset);
    Ok(Packet {
        v6: false,
        source: Address::v4(ip.source),
        destination: Address::v4(ip.destination),
        protocol: ip.protocol,
        fragment: offset & IPV4_FRAGMENT != 0,
        headless: offset & IPV4_OFFSET != 0,
        transport: ETHERNET_BYTES + header,
        end: ETHERNET_BYTES + u32::from(u16::from_be(ip.total)),
    })
}

#[inline(always)]
fn parse_v6(ctx: &TcContext) -> Result<Packet, KernelReason> {
    let ip: Ipv6Header = load(ctx, ETHERNET_BYTES)?;
    if ip.version_class >> 4 != 6 {
        return Err(KernelReason::WallUnparsable);
    }
    let transport = ETHERNET_BYTES + size_of::<Ipv6Header>() as u32;
    let mut packet = Packet {
        v6: true,
        source: Address(ip.source),
        destination: Address(ip.destination),
        protocol: ip.next,
        fragment: false,
        headless: false,
        transport,
        end: transport + u32::from(u16::from_be(ip.payload)),
    };
    for _ in 0..EXTENSION_HEADERS {
        match packet.protocol {
            HEADER_HOP_BY_HOP | HEADER_DESTINATION => {
                let [next, length]: [u8; 2] = load(ctx, packet.transport)?;
                packet.protocol = next;
                packet.transport += (u32::from(length) + 1) * 8;
            }
            HEADER_FRAGMENT => {
                let next: u8 = load(ctx, packet.transport)?;
                let offset = u16::from_be(load(ctx, packet.transport + 2)?);
                packet.protocol = next;
                packet.transport += 8;
                packet.fragment = true;
                packet.headless = offset & IPV6_OFFSET != 0;
                if offset & IPV6_FRAGMENT != 0 {
                    // What follows may be in another fragment.
                    return Ok(packet);
                }
            }
            _ => return Ok(packet),
        }
    }
    Err(KernelReason::WallUnparsable)
}

impl Packet {
    /// The TCP segment; the packet must be TCP and no fragment.
    #[inline(always)]
    pub(crate) fn segment(&self, ctx: &TcContext) -> Result<Segment, KernelReason> {
        let header: TcpHeader = load(ctx, self.transport)?;
        let length = u32::from(header.offset >> 4) * 4;
        if length < size_of::<TcpHeader>() as u32 {
            return Err(KernelReason::WallUnparsable);
        }
        Ok(Segment {
            source_port: u16::from_be(header.source_port),
            destination_port: u16::from_be(header.destination_port),
            flags: header.flags,
            options: self.transport + size_of::<TcpHeader>() as u32,
            payload: self.transport + length,
        })
    }

    /// Source and destination port of a UDP datagram; the packet must be UDP and not headless.
    #[inline(always)]
    pub(crate) fn udp_ports(&self, ctx: &TcContext) -> Result<(u16, u16), KernelReason> {
        let [source, destination]: [u16; 2] = load(ctx, self.transport)?;
        Ok((u16::from_be(source), u16::from_be(destination)))
    }
}

/// Reads from the frame, wherever its bytes are; a frame that is too short can't be parsed.
#[inline(always)]
pub(crate) fn load<T>(ctx: &TcContext, offset: u32) -> Result<T, KernelReason> {
    ctx.load(offset as usize)
        .map_err(|_| KernelReason::WallUnparsable)
}
