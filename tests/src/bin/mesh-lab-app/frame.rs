//! Frames made by hand, good enough for a router to carry on.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::dodge::own_mac;

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const VLAN: u16 = 0x8100;

/// TCP flags.
pub(crate) const SYN: u8 = 0x02;
/// PSH and ACK.
pub(crate) const DATA: u8 = 0x18;

const SOURCE_PORT: u16 = 40_000;

/// From where to where.
pub(crate) struct Ends {
    pub(crate) own: Ipv4Addr,
    pub(crate) to: SocketAddrV4,
    pub(crate) gateway: [u8; 6],
}

/// A segment with `data`, its checksum right.
pub(crate) fn tcp(ends: &Ends, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = SOURCE_PORT.to_be_bytes().to_vec();
    segment.extend(ends.to.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    segment.extend(data);
    let mut pseudo = [ends.own.octets(), ends.to.ip().octets()].concat();
    pseudo.extend([0, 6]);
    pseudo.extend(length(segment.len()));
    pseudo.extend(&segment);
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum);
    segment
}

/// An IPv4 packet around a TCP segment.
pub(crate) fn ipv4(ends: &Ends, segment: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(length(20 + segment.len()));
    packet.extend([0, 1, 0, 0, 64, 6, 0, 0]);
    packet.extend(ends.own.octets());
    packet.extend(ends.to.ip().octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(segment);
    packet
}

/// An Ethernet frame to the node with a data segment in it.
pub(crate) fn plain(ends: &Ends, data: &[u8]) -> io::Result<Vec<u8>> {
    ethernet(ends, &[], data)
}

/// The same with a VLAN tag.
pub(crate) fn tagged(ends: &Ends, data: &[u8]) -> io::Result<Vec<u8>> {
    ethernet(ends, &[0x81, 0, 0, 5], data)
}

fn ethernet(ends: &Ends, tag: &[u8], data: &[u8]) -> io::Result<Vec<u8>> {
    let mut frame = ends.gateway.to_vec();
    frame.extend(own_mac()?);
    frame.extend(tag);
    frame.extend(IPV4.to_be_bytes());
    frame.extend(ipv4(ends, &tcp(ends, DATA, data)));
    Ok(frame)
}

/// As a header has it; no frame here is longer than 16 bits can say.
fn length(bytes: usize) -> [u8; 2] {
    let [.., high, low] = bytes.to_be_bytes();
    [high, low]
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes.chunks(2);
    let sum: u32 = pairs
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = ((folded & 0xffff) + (folded >> 16)).to_be_bytes();
    [!high, !low]
}
