//! What leaves the pod, and what doesn't.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use mesh_common::KernelReason;
use socket2::{Domain, Socket, Type};

use crate::frame::{self, ACK, IPV4, RST, SYN};
use crate::lab::{Lab, NODE_V4, NODE_V6, eventually};
use crate::names::{accept, address, local};
use crate::process::Process;

pub(crate) const TCP: u8 = 6;
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

fn server(lab: &Lab, ip: &str) -> (Socket, SocketAddr) {
    let listener = lab.in_node(|| {
        let at = SocketAddr::new(ip.parse().unwrap(), 0);
        let listener = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        listener.bind(&at.into()).unwrap();
        listener.listen(8).unwrap();
        listener
    });
    let at = local(&listener);
    (listener, at)
}

/// Refusals by the wall.
pub(crate) fn walled(lab: &Lab) -> Vec<(KernelReason, u64)> {
    let all = lab.capture.as_ref().unwrap().refusals(0).unwrap();
    all.into_iter()
        .filter(|&(reason, _)| reason as u32 >= KernelReason::WallNotWorker as u32)
        .collect()
}

pub(crate) fn raw_socket(process: &Process) -> OwnedFd {
    process.socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)
}

/// A SYN of an app by a raw socket.
pub(crate) fn send_raw_syn(lab: &Lab, to: SocketAddr) {
    let app = lab.app();
    let SocketAddr::V4(to) = to else {
        panic!("IPv4")
    };
    let segment = frame::tcp(to.port(), SYN, &[], &[]);
    let packet = frame::ipv4(POD, *to.ip(), TCP, 0, &segment);
    frame::send_packet(&raw_socket(&app), *to.ip(), &packet);
}

#[test]
fn the_workers_own_connections_pass_both_ways_in_both_families() {
    let lab = Lab::new();
    for ip in [NODE_V4, NODE_V6] {
        let (listener, at) = server(&lab, ip);
        let mut worker = TcpStream::from(lab.worker().process.dial(at).unwrap());
        let (peer, _) = accept(&listener);
        let mut peer = TcpStream::from(peer);
        let sent = vec![7; 1 << 20];
        let mut received = vec![0; 1 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| worker.write_all(&sent).unwrap());
            peer.read_exact(&mut received).unwrap();
        });
        assert!(sent == received);
        peer.write_all(b"back").unwrap();
        worker.read_exact(&mut received[..4]).unwrap();
        assert_eq!(&received[..4], b"back");
    }
    assert_eq!(walled(&lab), []);
}

#[test]
fn a_connection_older_than_the_enrolment_ends() {
    let mut lab = Lab::node();
    lab.add_pod();
    let (listener, at) = server(&lab, NODE_V4);
    let app = lab.app();
    let mut old = TcpStream::from(app.dial(at).unwrap());
    let (peer, _) = accept(&listener);
    lab.enrol(0);
    old.write_all(b"in clear").unwrap();
    eventually("the wall counts it", || {
        (lab.refused(0, KernelReason::WallNotWorker) > 0).then_some(())
    });
    peer.set_nonblocking(true).unwrap();
    let error = (&peer).read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn raw_sockets_of_apps_are_dropped() {
    let lab = Lab::new();
    let (_listener, at) = server(&lab, NODE_V4);
    send_raw_syn(&lab, at);
    assert_eq!(walled(&lab), [(KernelReason::WallNotWorker, 1)]);
}

#[test]
fn raw_sockets_of_the_worker_are_dropped_too() {
    let lab = Lab::new();
    let (_listener, at) = server(&lab, NODE_V4);
    let socket = raw_socket(&lab.worker().process);
    let segment = frame::tcp(at.port(), SYN, &[], &[]);
    frame::send_packet(&socket, NODE, &frame::ipv4(POD, NODE, TCP, 0, &segment));
    assert_eq!(walled(&lab), [(KernelReason::WallTupleMismatch, 1)]);
}

#[test]
fn refused_from_outside_stays_refused() {
    let lab = Lab::new();
    for ip in [lab.pod().v4, lab.pod().v6] {
        // Nobody listens for HBONE in this lab: the kernel answers by itself.
        let error = lab.in_node(|| {
            let to = SocketAddr::new(ip, mesh_common::PORT_HBONE);
            TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{ip}");
    }
    assert_eq!(walled(&lab), []);
}

#[test]
fn a_connection_closed_by_the_worker_closes_on_the_other_side() {
    let lab = Lab::new();
    for ip in [NODE_V4, NODE_V6] {
        let (listener, at) = server(&lab, ip);
        let worker = lab.worker().process.dial(at).unwrap();
        let (peer, _) = accept(&listener);
        drop(worker);
        assert_eq!((&peer).read(&mut [0; 1]).unwrap(), 0);
        drop(peer);
        // Its FIN is answered by what is left of the worker's socket.
        let node = lab.node_netns();
        eventually("nothing of it is left outside", || {
            let output = Command::new("ip")
                .args([
                    "netns",
                    "exec",
                    &node,
                    "cat",
                    "/proc/net/tcp",
                    "/proc/net/tcp6",
                ])
                .output()
                .unwrap();
            let table = String::from_utf8(output.stdout).unwrap();
            let port = format!(":{:04X} ", at.port());
            let left = table.lines().filter(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                // The listener is state 0A.
                fields.len() > 3 && format!("{} ", fields[1]).ends_with(&port) && fields[3] != "0A"
            });
            (left.count() == 0).then_some(())
        });
    }
    assert_eq!(walled(&lab), []);
}

#[test]
fn syn_cookies_pass() {
    let lab = Lab::new();
    lab.in_pod(|| fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").unwrap());
    for (ip, listener) in [
        (lab.pod().v4, &lab.worker().plaintext_v4),
        (lab.pod().v6, &lab.worker().plaintext_v6),
    ] {
        let to = SocketAddr::new(ip, 8080);
        let mut caller =
            lab.in_node(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap());
        let (worker, from) = accept(listener);
        assert_eq!((local(&worker), from), (to, caller.local_addr().unwrap()));
        caller.write_all(b"hello").unwrap();
        let mut received = [0; 5];
        (&worker).read_exact(&mut received).unwrap();
        assert_eq!(&received, b"hello");
    }
    assert_eq!(walled(&lab), []);
}

/// What the kernel answers by itself for a listener that has another port than the packet.
#[test]
fn answers_to_stray_segments_pass() {
    const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 99);
    let lab = Lab::new();
    let (netns, node) = (&lab.pod().netns, lab.node_netns());
    crate::lab::ip(&format!(
        "-n {netns} neigh add {STRANGER} lladdr 02:00:00:00:00:99 dev eth0"
    ));
    let outside = Process::spawn(&crate::lab::netns_path(&node), &lab.app_cgroup());
    let socket = outside.socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
    // Of one protocol, so it sees what the wall lets pass.
    let protocol = i32::from(IPV4.to_be());
    let tap = outside.socket(libc::AF_PACKET, libc::SOCK_RAW, protocol);
    let tap = Socket::from(tap);
    tap.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let send = |numbers, flags| {
        let packet = frame::valid_v4(STRANGER, POD, numbers, frame::tcp(8080, flags, &[], &[]));
        let mut bytes = frame::ethernet(IPV4, &packet);
        bytes[..6].copy_from_slice(&pod_mac(&lab));
        frame::send_frame(&socket, lab.pod().ifindex, IPV4, &bytes);
    };
    let answered = |flags: u8| {
        let mut bytes = [0; 128];
        while {
            let len = (&tap).read(&mut bytes).unwrap();
            len < 54 || bytes[26..30] != POD.octets() || bytes[47] != flags
        } {}
        u32::from_be_bytes(bytes[38..42].try_into().unwrap())
    };
    send([7, 0], ACK);
    answered(RST);
    send([0, 0], SYN);
    let sequence = answered(SYN | ACK);
    // Out of the request's window.
    send([0x4000_0000, sequence.wrapping_add(1)], ACK);
    answered(ACK);
    assert_eq!(walled(&lab), []);
}

fn pod_mac(lab: &Lab) -> [u8; 6] {
    let output = Command::new("ip")
        .args(["-n", &lab.pod().netns, "-br", "link", "show", "eth0"])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let mac = line.split_whitespace().nth(2).unwrap();
    let bytes: Vec<_> = mac
        .split(':')
        .map(|b| u8::from_str_radix(b, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// An abortive close takes the socket's own addresses away while its RST is on its way.
#[test]
fn a_reset_by_the_worker_arrives() {
    let lab = Lab::new();
    for ip in [NODE_V4, NODE_V6] {
        let (listener, at) = server(&lab, ip);
        for _ in 0..20 {
            let worker = lab.worker().process.dial(at).unwrap();
            let (peer, _) = accept(&listener);
            worker.set_linger(Some(Duration::ZERO)).unwrap();
            drop(worker);
            let error = (&peer).read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
    assert_eq!(walled(&lab), []);
}

#[test]
fn closing_on_both_sides_at_once_drops_nothing() {
    let lab = Lab::new();
    for ip in [NODE_V4, NODE_V6] {
        let (listener, at) = server(&lab, ip);
        for _ in 0..200 {
            let worker = lab.worker().process.dial(at).unwrap();
            let (peer, _) = accept(&listener);
            (&peer).write_all(b"x").unwrap();
            (&worker).read_exact(&mut [0; 1]).unwrap();
            drop(peer);
            drop(worker);
        }
    }
    assert_eq!(walled(&lab), []);
}

#[test]
fn ping_passes() {
    let lab = Lab::new();
    for (ip, protocol) in [(NODE_V4, 1), (NODE_V6, 58)] {
        let to = SocketAddr::new(ip.parse().unwrap(), 0);
        let socket = lab.in_pod(|| {
            Socket::new(Domain::for_address(to), Type::RAW, Some(protocol.into())).unwrap()
        });
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let (request, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
        socket
            .send_to(&frame::icmp_echo(request), &to.into())
            .unwrap();
        let header = if to.is_ipv4() { 20 } else { 0 };
        let mut received = [0; 64];
        // Neighbour discovery comes by as well.
        while {
            let len = (&socket).read(&mut received).unwrap();
            len <= header || received[header] != reply
        } {}
    }
    assert_eq!(walled(&lab), []);
}

/// A pod with `CAP_NET_ADMIN` can rewrite what its worker sends; the wall sees that it isn't
/// what the worker's socket says.
#[test]
fn what_the_pod_rewrites_of_its_workers_packets_is_dropped() {
    let lab = Lab::new();
    for (ip, family, to) in [
        (NODE_V4, "ip", "198.51.100.7:443"),
        (NODE_V6, "ip6", "[2001:db8::7]:443"),
    ] {
        let (listener, at) = server(&lab, ip);
        let to = address(to);
        let rules = format!(
            "add table {family} t; \
             add chain {family} t o {{ type nat hook output priority -100; }}; \
             add rule {family} t o {family} daddr {} tcp dport 443 dnat to {at}",
            to.ip()
        );
        let nft = Command::new("ip")
            .args(["netns", "exec", &lab.pod().netns, "nft", &rules])
            .output()
            .expect("ip is installed");
        assert!(
            nft.status.success(),
            "this test needs the package nftables: {}",
            String::from_utf8_lossy(&nft.stderr)
        );
        let before = lab.refused(0, KernelReason::WallTupleMismatch);
        let worker = &lab.worker().process;
        let socket = worker.tcp(to);
        socket.set_nonblocking(true).unwrap();
        let error = worker.connect(&socket, to).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        eventually("the wall counts it", || {
            (lab.refused(0, KernelReason::WallTupleMismatch) > before).then_some(())
        });
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
