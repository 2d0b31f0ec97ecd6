//! Frames and packets that processes make by themselves, past every socket of TCP.

use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use mesh_common::KernelReason;

use crate::frame::{self, ACK, ARP, FIN, IPV4, IPV6, PSH, RST, SYN, VLAN};
use crate::lab::{Lab, NODE_V6, netns_path};
use crate::process::Process;
use crate::wall::{NODE, POD, TCP, raw_socket, walled};
use crate::{device, program};

const PACKET_QDISC_BYPASS: i32 = 20;

/// What apps can put on their device by themselves.
pub(crate) struct Injector<'a> {
    lab: &'a Lab,
    socket: OwnedFd,
    ifindex: u32,
    _app: Process,
}

impl<'a> Injector<'a> {
    pub(crate) fn new(lab: &'a Lab, bypass: bool) -> Self {
        let app = lab.app();
        let socket = app.socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        let on = i32::from(bypass);
        // SAFETY: the value is as long as said.
        let status = unsafe {
            let (fd, level) = (socket.as_raw_fd(), libc::SOL_PACKET);
            libc::setsockopt(fd, level, PACKET_QDISC_BYPASS, (&raw const on).cast(), 4)
        };
        assert_eq!(status, 0);
        let ifindex = lab.in_pod(|| nix::net::if_::if_nametoindex("eth0").unwrap());
        Self {
            lab,
            socket,
            ifindex,
            _app: app,
        }
    }

    /// Sends one frame and says what became of it: the reason, or `None` if it passed.
    pub(crate) fn send(&self, claimed: u16, bytes: &[u8]) -> Option<KernelReason> {
        let before = walled(self.lab);
        frame::send_frame(&self.socket, self.ifindex, claimed, bytes);
        let after = walled(self.lab);
        let count = |of: &[(KernelReason, u64)], reason| {
            of.iter()
                .find(|&&(r, _)| r == reason)
                .map_or(0, |&(_, n)| n)
        };
        after
            .iter()
            .find(|&&(reason, n)| n > count(&before, reason))
            .map(|&(reason, _)| reason)
    }
}

fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame::ethernet(IPV4, &frame::ipv4(POD, NODE, protocol, 0, payload))
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let (pod, node): (Ipv6Addr, Ipv6Addr) = ("fd88::2".parse().unwrap(), NODE_V6.parse().unwrap());
    frame::ethernet(IPV6, &frame::ipv6(pod, node, next, payload))
}

#[test]
fn no_frame_of_an_app_carries_tcp_out() {
    let lab = Lab::new();
    let data = frame::tcp(80, PSH | ACK, &[], b"in clear");
    let syn = frame::tcp(80, SYN, &[], &[]);
    let tagged = |inner: &[u8]| {
        // Tag control information, then the frame's own ethertype and payload.
        let mut payload = vec![0, 5];
        payload.extend(&inner[12..]);
        frame::ethernet(VLAN, &payload)
    };
    for bypass in [false, true] {
        let app = Injector::new(&lab, bypass);
        for segment in [&data, &syn] {
            let plain = v4(TCP, segment);
            for claimed in [IPV4, IPV6, ARP, 0x1234] {
                assert_eq!(app.send(claimed, &plain), Some(KernelReason::WallNotWorker));
            }
            assert_eq!(
                app.send(IPV6, &v6(TCP, segment)),
                Some(KernelReason::WallNotWorker)
            );
            let hidden = v6(0, &frame::extension(60, &frame::extension(TCP, segment)));
            assert_eq!(app.send(IPV6, &hidden), Some(KernelReason::WallNotWorker));
            let once = tagged(&plain);
            assert_eq!(app.send(VLAN, &once), Some(KernelReason::WallProtocol));
            assert_eq!(app.send(IPV4, &once), Some(KernelReason::WallProtocol));
            assert_eq!(
                app.send(VLAN, &tagged(&once)),
                Some(KernelReason::WallProtocol)
            );
        }
    }
}

/// Why the wall is on the host's side.
#[test]
fn a_program_inside_the_pod_does_not_see_what_bypasses_its_queues() {
    let lab = Lab::new();
    let shot = program::returning(program::SCHED_CLS, 0, 2);
    let _link = device::attach_inside(&lab, &shot);
    let frame = v4(TCP, &frame::tcp(80, PSH | ACK, &[], b"in clear"));
    let app = Injector::new(&lab, false);
    let dropped = frame::try_send_frame(&app.socket, app.ifindex, IPV4, &frame).unwrap_err();
    assert_eq!(dropped.raw_os_error(), Some(libc::ENOBUFS));
    assert_eq!(walled(&lab), []);
    let refused = Some(KernelReason::WallNotWorker);
    assert_eq!(Injector::new(&lab, true).send(IPV4, &frame), refused);
}

#[test]
fn fragments_tunnels_and_what_cannot_be_parsed_are_dropped() {
    let lab = Lab::new();
    let app = Injector::new(&lab, false);
    let segment = frame::tcp(80, PSH | ACK, &[], b"in clear");
    let first = frame::ipv4(POD, NODE, TCP, 0x2000, &segment);
    let later = frame::ipv4(POD, NODE, TCP, 0x0003, &segment);
    let fragment = Some(KernelReason::WallFragment);
    assert_eq!(app.send(IPV4, &frame::ethernet(IPV4, &first)), fragment);
    assert_eq!(app.send(IPV4, &frame::ethernet(IPV4, &later)), fragment);
    // IPv6: TCP, and something that may hide it, in a first fragment.
    let more = |next: u8| {
        let mut header = vec![next, 0, 0, 1, 0, 0, 0, 9];
        header.extend(&segment);
        v6(44, &header)
    };
    assert_eq!(app.send(IPV6, &more(TCP)), fragment);
    assert_eq!(app.send(IPV6, &more(60)), fragment);
    let protocol = Some(KernelReason::WallProtocol);
    // IP in IP, IPv6 in IPv4, GRE, ESP, SCTP, UDP-Lite, IPv6 routing header, MPLS, 802.3.
    for tunnel in [4, 41, 47, 50, 132, 136] {
        assert_eq!(app.send(IPV4, &v4(tunnel, &segment)), protocol, "{tunnel}");
    }
    assert_eq!(
        app.send(IPV6, &v6(43, &frame::extension(TCP, &segment))),
        protocol
    );
    assert_eq!(
        app.send(0x8847, &frame::ethernet(0x8847, &segment)),
        protocol
    );
    assert_eq!(app.send(IPV4, &frame::ethernet(0x0100, &segment)), protocol);
    let unparsable = Some(KernelReason::WallUnparsable);
    assert_eq!(
        app.send(IPV4, &frame::ethernet(IPV4, &[0x45; 10])),
        unparsable
    );
    assert_eq!(
        app.send(IPV4, &frame::ethernet(IPV4, &[0x42; 60])),
        unparsable
    );
    assert_eq!(
        app.send(IPV4, &frame::ethernet(IPV4, &[0x65; 60])),
        unparsable
    );
    assert_eq!(app.send(IPV4, &v4(TCP, &segment[..12])), unparsable);
    let mut endless = frame::extension(TCP, &segment);
    for _ in 0..8 {
        endless = frame::extension(60, &endless);
    }
    assert_eq!(app.send(IPV6, &v6(60, &endless)), unparsable);
}

/// The test itself runs in the root cgroup, as the kernel's own answers do.
#[test]
fn without_a_workers_socket_only_bare_segments_pass() {
    let lab = Lab::new();
    let cgroup = lab.options.cgroup_root.clone();
    let root = Process::spawn(&netns_path(&lab.pod().netns), &cgroup);
    let socket = raw_socket(&root);
    let send = |flags, options: &[u8], payload: &[u8]| {
        let before = lab.refused(0, KernelReason::WallBareSegment);
        let segment = frame::tcp(9, flags, options, payload);
        frame::send_packet(&socket, NODE, &frame::ipv4(POD, NODE, TCP, 0, &segment));
        lab.refused(0, KernelReason::WallBareSegment) == before
    };
    let timestamp = [1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
    let negotiated = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let foreign = [254, 4, 1, 2];
    for flags in [RST, RST | ACK, ACK, SYN | ACK] {
        assert!(send(flags, &[], &[]), "{flags:#x}");
        assert!(send(flags, &timestamp, &[]), "{flags:#x}");
        assert!(!send(flags, &foreign, &[]), "{flags:#x}");
        assert!(!send(flags, &[], b"in clear"), "{flags:#x}");
        assert_eq!(
            send(flags, &negotiated, &[]),
            flags == SYN | ACK,
            "{flags:#x}"
        );
    }
    for flags in [SYN, FIN, FIN | ACK, PSH | ACK, PSH, 0, SYN | FIN | ACK] {
        assert!(!send(flags, &[], &[]), "{flags:#x}");
    }
}
