//! Frames and packets as nobody's kernel would make them. Checksums are left out: the wall
//! decides before anybody looks at them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{LazyLock, Mutex};
use std::thread;

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity, unshare};
use nix::unistd::Pid;

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const VLAN: u16 = 0x8100;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

pub(crate) fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `fragment`: the flags and offset as they are on the wire.
pub(crate) fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

pub(crate) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// An IPv6 extension header of 8 bytes.
pub(crate) fn extension(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0, 1, 4, 0, 0, 0, 0];
    header.extend(payload);
    header
}

/// ARP of that operation (1 asks, 2 answers) for IPv4 over Ethernet.
pub(crate) fn arp(operation: u16, sender: IpAddr, target: &str) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("ARP is of IPv4"),
    };
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend([2, 0, 0, 0, 0, 1]);
    packet.extend(octets(sender));
    packet.extend([0; 6]);
    packet.extend(octets(target.parse().expect("an address")));
    packet
}

/// `options` must be a multiple of four bytes.
pub(crate) fn tcp(to: u16, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = 40_000_u16.to_be_bytes().to_vec();
    segment.extend(to.to_be_bytes());
    segment.extend([0; 8]);
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    segment.extend([words << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(payload);
    segment
}

pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = from.to_be_bytes().to_vec();
    datagram.extend(to.to_be_bytes());
    datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// An ICMP echo of that type. The kernel sums ICMPv6 itself.
pub(crate) fn icmp_echo(kind: u8) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 1, 0, 1];
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An IPv4 packet of a TCP segment that a kernel takes: with sequence and
/// acknowledgement numbers and checksum.
pub(crate) fn valid_v4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    [sequence, acknowledgement]: [u32; 2],
    mut segment: Vec<u8>,
) -> Vec<u8> {
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    let mut pseudo = source.octets().to_vec();
    pseudo.extend(destination.octets());
    pseudo.extend([0, 6]);
    pseudo.extend(u16::try_from(segment.len()).unwrap().to_be_bytes());
    pseudo.extend(&segment);
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(source, destination, 6, 0, &segment)
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Sends a frame through a packet socket on the device, claiming a protocol.
pub(crate) fn send_frame(socket: &OwnedFd, ifindex: u32, claimed: u16, frame: &[u8]) {
    try_send_frame(socket, ifindex, claimed, frame).unwrap();
}

/// The same; what is dropped before it has left the device is `ENOBUFS`.
pub(crate) fn try_send_frame(
    socket: &OwnedFd,
    ifindex: u32,
    claimed: u16,
    frame: &[u8],
) -> io::Result<()> {
    // SAFETY: all zeros is a sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    to.sll_protocol = claimed.to_be();
    to.sll_ifindex = i32::try_from(ifindex).unwrap();
    send(
        socket,
        frame,
        (&raw const to).cast(),
        size_of::<libc::sockaddr_ll>(),
    )
}

/// Sends an IPv4 packet, header included, through a raw socket.
pub(crate) fn send_packet(socket: &OwnedFd, destination: Ipv4Addr, packet: &[u8]) {
    let to = socket2::SockAddr::from(std::net::SocketAddr::from((destination, 0)));
    send(socket, packet, to.as_ptr().cast(), to.len() as usize).unwrap();
}

/// Sends, and returns when the other end of the veth has handled it.
fn send(socket: &OwnedFd, bytes: &[u8], to: *const libc::sockaddr, len: usize) -> io::Result<()> {
    let echo = ECHO.lock().unwrap();
    let anywhere = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
    let sent = send_now(socket, bytes, to, len);
    echo.send(b"after it").unwrap();
    echo.recv(&mut [0; 8]).unwrap();
    sched_setaffinity(Pid::from_raw(0), &anywhere).unwrap();
    sent
}

/// A socket that hears itself. What a processor receives it handles in order, later if it is busy
/// (on 6.1 whenever `ksoftirqd` runs): what was sent before by the same one is done.
static ECHO: LazyLock<Mutex<UdpSocket>> = LazyLock::new(|| {
    let in_its_own_namespace = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        crate::lab::ip("link set lo up");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        Mutex::new(socket)
    };
    thread::spawn(in_its_own_namespace).join().unwrap()
});

fn send_now(
    socket: &OwnedFd,
    bytes: &[u8],
    to: *const libc::sockaddr,
    len: usize,
) -> io::Result<()> {
    // SAFETY: the buffer and the address are as long as said.
    let sent = unsafe {
        let (data, size) = (bytes.as_ptr().cast(), bytes.len());
        libc::sendto(
            socket.as_raw_fd(),
            data,
            size,
            0,
            to,
            u32::try_from(len).unwrap(),
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    assert_eq!(usize::try_from(sent).ok(), Some(bytes.len()));
    Ok(())
}
