//! Sockets that are not plain TCP or UDP, and options that reach beyond the socket.

use std::path::Path;

use super::Control::{NotRefused, Succeeds};
use super::{Attempt, Call, PREPARED, attempt, c_string, call, int, words};
use crate::inject::DATA;

const RAW: i32 = libc::SOCK_RAW;
const STREAM: i32 = libc::SOCK_STREAM;
const DATAGRAM: i32 = libc::SOCK_DGRAM;
const PACKET: i32 = libc::SOCK_SEQPACKET;

#[rustfmt::skip] // One attempt a line.
pub(super) fn kinds() -> Vec<Attempt> {
    let socket = |name, domain, kind, protocol, control| {
        let args = [int(domain), int(kind), int(protocol)];
        attempt(name, libc::SYS_socket, &args, &[], control)
    };
    let pair = |name, kind| {
        let args = [int(libc::AF_UNIX), int(kind), 0, DATA];
        attempt(name, libc::SYS_socketpair, &args, &[0; 8], Succeeds)
    };
    let all_frames = i32::from(3u16.to_be()); // ETH_P_ALL
    vec![
        socket("packet socket", libc::AF_PACKET, RAW, all_frames, Succeeds),
        socket("packet socket, cooked", libc::AF_PACKET, DATAGRAM, all_frames, Succeeds),
        socket("raw IPv4 socket", libc::AF_INET, RAW, libc::IPPROTO_RAW, Succeeds),
        socket("raw IPv4 socket for TCP", libc::AF_INET, RAW, libc::IPPROTO_TCP, Succeeds),
        socket("raw IPv6 socket", libc::AF_INET6, RAW, libc::IPPROTO_ICMPV6, Succeeds),
        socket("ping socket", libc::AF_INET, DATAGRAM, libc::IPPROTO_ICMP, NotRefused),
        socket("MPTCP socket", libc::AF_INET, STREAM, libc::IPPROTO_MPTCP, NotRefused),
        socket("SCTP socket", libc::AF_INET, STREAM, libc::IPPROTO_SCTP, NotRefused),
        socket("netlink socket", libc::AF_NETLINK, RAW, libc::NETLINK_ROUTE, Succeeds),
        socket("unix socket", libc::AF_UNIX, STREAM, 0, Succeeds),
        socket("vsock socket", libc::AF_VSOCK, STREAM, 0, NotRefused),
        socket("kernel crypto socket", libc::AF_ALG, PACKET, 0, NotRefused),
        socket("XDP socket", libc::AF_XDP, RAW, 0, NotRefused),
        pair("unix datagram pair", DATAGRAM),
        pair("unix packet pair", PACKET),
    ]
}

#[rustfmt::skip] // One attempt a line.
pub(super) fn options() -> Vec<Attempt> {
    let set = |name, level, option, value: &[u8], len, control| {
        let args = [PREPARED, int(level), int(option), DATA, len];
        attempt(name, libc::SYS_setsockopt, &args, value, control)
    };
    // A filter's length and address, and its one instruction: accept all.
    let filter = words(&[1, DATA + 16, 0xffff_ffff_0000_0006]);
    let one = 1u64.to_ne_bytes();
    let interfaces = [PREPARED, libc::SIOCGIFCONF, DATA];
    [
        set("a filter on a socket", libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter, 16, Succeeds),
        set("a mark on a socket", libc::SOL_SOCKET, libc::SO_MARK, &one, 4, Succeeds),
        set("a device for a socket", libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo\0", 3, Succeeds),
        set("a transparent socket", libc::IPPROTO_IP, libc::IP_TRANSPARENT, &one, 4, Succeeds),
        set("an upper-layer protocol", libc::IPPROTO_TCP, libc::TCP_ULP, b"tls", 3, NotRefused),
        attempt("ioctl on network devices", libc::SYS_ioctl, &interfaces, &[0; 16], Succeeds),
    ]
    .map(|attempt| attempt.prepared_by(socket(libc::AF_INET)))
    .into()
}

/// The filter does not let a worker have a unix socket to connect.
pub(super) fn connect_to(path: &Path) -> Attempt {
    let mut address = u16::try_from(libc::AF_UNIX)
        .expect("a small number")
        .to_ne_bytes()
        .to_vec();
    address.extend(c_string(path));
    let args = [PREPARED, DATA, address.len() as u64];
    let name = "connect to the supervisor's socket";
    attempt(name, libc::SYS_connect, &args, &address, Succeeds).prepared_by(socket(libc::AF_UNIX))
}

fn socket(domain: i32) -> Call {
    call(libc::SYS_socket, &[int(domain), int(STREAM), 0], &[])
}
