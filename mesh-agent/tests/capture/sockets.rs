//! Every way in which an app can connect a socket ends at its worker, which is told the same,
//! and so is the app.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mesh_common::KernelReason;
use nix::poll::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::Lab;
use crate::names::{accept, address, local, original_destination, peer};
use crate::outbound::{disconnect, nothing_left};

/// Client and server, data in the SYN without a cookie (`tcp_fastopen` of `ip-sysctl`).
const FAST_OPEN_WITHOUT_COOKIES: &str = "519";

/// A destination outside, by what the app calls it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    V4,
    V6,
    /// An IPv6 socket and a v4-mapped address.
    Mapped,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    pub(crate) fn destination(self) -> SocketAddr {
        address(match self {
            Self::V4 => "198.51.100.7:443",
            Self::V6 => "[2001:db8::7]:443",
            Self::Mapped => "[::ffff:198.51.100.7]:443",
        })
    }

    /// The pod's own address.
    fn own(self, lab: &Lab) -> IpAddr {
        match (self, lab.pod().v4) {
            (Self::V4, v4) => v4,
            (Self::Mapped, IpAddr::V4(v4)) => v4.to_ipv6_mapped().into(),
            _ => lab.pod().v6,
        }
    }

    fn loopback(self) -> SocketAddr {
        address(match self {
            Self::V4 => "127.0.0.1:0",
            Self::V6 => "[::1]:0",
            Self::Mapped => "[::ffff:127.0.0.1]:0",
        })
    }

    fn socket(self, lab: &Lab, protocol: Protocol) -> Socket {
        let domain = Domain::for_address(self.destination());
        lab.in_pod(|| Socket::new(domain, Type::STREAM, Some(protocol)).unwrap())
    }

    pub(crate) fn tcp(self, lab: &Lab) -> Socket {
        self.socket(lab, Protocol::TCP)
    }

    /// The worker's end of a connection of this app's socket, after all that either end is told.
    pub(crate) fn arrives(self, lab: &Lab, app: &Socket) -> Socket {
        let worker = lab.worker();
        let (listener, level) = match self {
            Self::V6 => (&worker.outbound_v6, libc::SOL_IPV6),
            _ => (&worker.outbound_v4, libc::SOL_IP),
        };
        let (accepted, from) = accept(listener);
        let destination = self.destination();
        let canonical = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        assert_eq!(
            original_destination(&accepted, level),
            canonical,
            "{self:?}"
        );
        assert_eq!(peer(app), destination, "{self:?}");
        assert_eq!(
            local(app),
            SocketAddr::new(self.own(lab), from.port()),
            "{self:?}"
        );
        nothing_left(lab);
        accepted
    }
}

/// Starts connecting, and waits until that has come to an end.
fn connect_nonblocking(app: &Socket, to: SocketAddr) {
    app.set_nonblocking(true).unwrap();
    let error = app.connect(&to.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{to}");
    let mut ready = [PollFd::new(app.as_fd(), PollFlags::POLLOUT)];
    assert_eq!(poll(&mut ready, 5000_u16).unwrap(), 1, "{to}");
    app.set_nonblocking(false).unwrap();
    assert!(app.take_error().unwrap().is_none(), "{to}");
}

/// Sends what `tail` says, and reads it at the worker's end.
fn carries(mut worker: &Socket, expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    worker.read_exact(&mut received).unwrap();
    assert_eq!(received, expected);
}

#[test]
fn connects_that_do_not_block() {
    let lab = Lab::new();
    for way in Way::ALL {
        let app = way.tcp(&lab);
        connect_nonblocking(&app, way.destination());
        way.arrives(&lab, &app);
    }
}

#[test]
fn connects_of_mptcp_sockets() {
    let lab = Lab::new();
    for way in Way::ALL {
        let app = way.socket(&lab, Protocol::MPTCP);
        app.connect(&way.destination().into()).unwrap();
        let worker = way.arrives(&lab, &app);
        (&app).write_all(b"hello").unwrap();
        carries(&worker, b"hello");
        let app = way.socket(&lab, Protocol::MPTCP);
        connect_nonblocking(&app, way.destination());
        way.arrives(&lab, &app);
    }
}

#[test]
fn tcp_fast_open() {
    let lab = Lab::new();
    for way in Way::ALL {
        let app = way.tcp(&lab);
        fast_open(&app, way).unwrap();
        carries(&way.arrives(&lab, &app), b"early");
        // The same by a plain connect, of which the first write is part.
        let app = way.tcp(&lab);
        set_tcp_option(&app, libc::TCP_FASTOPEN_CONNECT, 1);
        app.connect(&way.destination().into()).unwrap();
        (&app).write_all(b"early").unwrap();
        carries(&way.arrives(&lab, &app), b"early");
    }
}

/// The worker's end exists, and has data, before the handshake is over.
#[test]
fn tcp_fast_open_with_data_in_the_syn() {
    let lab = Lab::new();
    let path = "/proc/sys/net/ipv4/tcp_fastopen";
    lab.in_pod(|| std::fs::write(path, FAST_OPEN_WITHOUT_COOKIES).unwrap());
    let worker = lab.worker();
    for listener in [&worker.outbound_v4, &worker.outbound_v6] {
        set_tcp_option(listener, libc::TCP_FASTOPEN, 16);
    }
    for way in Way::ALL {
        let app = way.tcp(&lab);
        fast_open(&app, way).unwrap();
        carries(&way.arrives(&lab, &app), b"early");
        let app = way.tcp(&lab);
        set_tcp_option(&app, libc::TCP_FASTOPEN_CONNECT, 1);
        app.connect(&way.destination().into()).unwrap();
        (&app).write_all(b"early").unwrap();
        carries(&way.arrives(&lab, &app), b"early");
    }
    let passive = lab.in_pod(|| std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    assert_eq!(counter(&passive, "TCPFastOpenPassive"), 6);
}

#[test]
fn tcp_fast_open_of_mptcp_sockets() {
    let lab = Lab::new();
    for way in Way::ALL {
        let app = way.socket(&lab, Protocol::MPTCP);
        match fast_open(&app, way) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                println!("test skipped: this kernel's MPTCP has no Fast Open (since Linux 6.2)");
                return;
            }
            sent => sent.unwrap(),
        }
        carries(&way.arrives(&lab, &app), b"early");
    }
}

/// Connects by sending.
fn fast_open(app: &Socket, way: Way) -> io::Result<()> {
    let sent = app.send_to_with_flags(b"early", &way.destination().into(), libc::MSG_FASTOPEN)?;
    assert_eq!(sent, 5);
    Ok(())
}

fn set_tcp_option(socket: &Socket, option: i32, value: i32) {
    // SAFETY: the value is as long as said.
    let status = unsafe {
        let (fd, value) = (socket.as_raw_fd(), (&raw const value).cast());
        libc::setsockopt(fd, libc::IPPROTO_TCP, option, value, 4)
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
}

/// A counter of `/proc/net/netstat`, where a line of names comes before one of numbers.
fn congestion_control(socket: &Socket) -> String {
    let name = String::from_utf8(socket.tcp_congestion().unwrap()).unwrap();
    name.trim_end_matches('\0').to_owned()
}

fn counter(netstat: &str, name: &str) -> u64 {
    let lines: Vec<_> = netstat.lines().collect();
    let pairs = lines.chunks(2).flat_map(|pair| {
        let [names, numbers] = [pair[0], pair[1]].map(str::split_whitespace);
        names.zip(numbers)
    });
    let mut found = pairs.filter(|(key, _)| *key == name);
    found.next().unwrap().1.parse().unwrap()
}

/// By the caller's own thread, by a worker thread of the ring, and by the ring's poller.
#[test]
fn connects_by_io_uring() {
    let lab = Lab::new();
    for (polled, flags) in [
        (false, io_uring::squeue::Flags::empty()),
        (false, io_uring::squeue::Flags::ASYNC),
        (true, io_uring::squeue::Flags::empty()),
    ] {
        let mut builder = io_uring::IoUring::builder();
        if polled {
            builder.setup_sqpoll(100);
        }
        let mut ring: io_uring::IoUring = builder.build(4).unwrap();
        for way in Way::ALL {
            let app = way.tcp(&lab);
            let to = SockAddr::from(way.destination());
            let fd = io_uring::types::Fd(app.as_raw_fd());
            let connect = io_uring::opcode::Connect::new(fd, to.as_ptr().cast(), to.len()).build();
            // SAFETY: socket and address outlive the operation, which is waited for.
            unsafe { ring.submission().push(&connect.flags(flags)).unwrap() };
            ring.submit_and_wait(1).unwrap();
            let done = ring.completion().next().unwrap();
            assert_eq!(done.result(), 0, "{way:?} {flags:?}");
            way.arrives(&lab, &app);
        }
    }
}

#[test]
fn a_socket_bound_to_a_device_is_refused_whatever_the_device_and_captured_without_it() {
    let lab = Lab::new();
    let mut refused = 0;
    for way in Way::ALL {
        for device in [&b"eth0"[..], b"lo"] {
            let app = way.tcp(&lab);
            app.bind_device(Some(device)).unwrap();
            let error = app.connect(&way.destination().into()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{way:?}");
            refused += 1;
            assert_eq!(lab.refused(0, KernelReason::ConnectBoundDevice), refused);
            app.bind_device(None).unwrap();
            app.connect(&way.destination().into()).unwrap();
            way.arrives(&lab, &app);
        }
    }
}

#[test]
fn a_socket_that_is_bound_first_keeps_its_address_and_port() {
    let lab = Lab::new();
    for (way, port) in Way::ALL.into_iter().zip(41_000..) {
        let unspecified = match way {
            Way::V4 => address("0.0.0.0:0").ip(),
            _ => address("[::]:0").ip(),
        };
        for (ip, port) in [
            (way.own(&lab), 0),
            (way.own(&lab), port),
            (unspecified, port + 100),
        ] {
            let app = way.tcp(&lab);
            app.bind(&SocketAddr::new(ip, port).into()).unwrap();
            app.connect(&way.destination().into()).unwrap();
            way.arrives(&lab, &app);
            assert!(port == 0 || local(&app).port() == port, "{way:?} {ip}");
        }
    }
}

/// A v4-mapped destination is none for such a socket, with a mesh or without.
#[test]
fn a_v4_mapped_destination_of_a_socket_for_ipv6_only_is_unreachable() {
    let lab = Lab::new();
    let app = Way::Mapped.tcp(&lab);
    app.set_only_v6(true).unwrap();
    let error = app.connect(&Way::Mapped.destination().into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    drop(app);
    nothing_left(&lab);
}

/// From anywhere to anywhere, by `AF_UNSPEC` in between.
#[test]
fn a_socket_that_is_connected_again_and_again_always_has_its_own_names() {
    let lab = Lab::new();
    for way in Way::ALL {
        let listener = way.tcp(&lab);
        listener.bind(&way.loopback().into()).unwrap();
        listener.listen(8).unwrap();
        let app = way.tcp(&lab);
        for _ in 0..2 {
            app.connect(&way.destination().into()).unwrap();
            way.arrives(&lab, &app);
            disconnect(&app);
            assert!(local(&app).ip().to_canonical().is_unspecified(), "{way:?}");
            app.connect(&local(&listener).into()).unwrap();
            accept(&listener);
            assert_eq!(peer(&app), local(&listener));
            assert!(local(&app).ip().to_canonical().is_loopback(), "{way:?}");
            disconnect(&app);
        }
        // As a server of its own pod.
        app.connect(&way.destination().into()).unwrap();
        way.arrives(&lab, &app);
        disconnect(&app);
        app.bind(&way.loopback().into()).unwrap();
        app.listen(8).unwrap();
        let at = local(&app);
        assert!(at.ip().to_canonical().is_loopback(), "{way:?}: {at}");
        let caller = way.tcp(&lab);
        caller
            .connect_timeout(&at.into(), Duration::from_secs(5))
            .unwrap();
        let (accepted, from) = accept(&app);
        assert_eq!((from, local(&accepted)), (local(&caller), at), "{way:?}");
    }
}

#[test]
fn a_connect_that_was_refused_can_be_tried_elsewhere() {
    let lab = Lab::new();
    for way in Way::ALL {
        let app = way.tcp(&lab);
        let mut nobody = way.loopback();
        nobody.set_port(9);
        for to in [
            nobody,
            SocketAddr::new(way.destination().ip(), mesh_common::PORT_HBONE),
        ] {
            let error = app.connect(&to.into()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{to}");
        }
        app.connect(&way.destination().into()).unwrap();
        way.arrives(&lab, &app);
    }
}

/// Addresses of the pod that the mesh was not told of are as any other.
#[test]
fn every_address_of_the_pod_is_captured() {
    let lab = Lab::new();
    for more in ["10.88.0.22/24", "fd88::22/64"] {
        let nodad = if more.contains(':') { " nodad" } else { "" };
        crate::lab::ip(&format!(
            "-n {} addr add {more} dev eth0{nodad}",
            lab.pod().netns
        ));
    }
    let worker = lab.worker();
    let own = [
        lab.pod().v4,
        lab.pod().v6,
        address("10.88.0.22:0").ip(),
        address("[fd88::22]:0").ip(),
    ];
    for ip in own {
        let to = SocketAddr::new(ip, 8080);
        let app = if ip.is_ipv4() { Way::V4 } else { Way::V6 }.tcp(&lab);
        app.connect(&to.into()).unwrap();
        let (listener, level) = if ip.is_ipv4() {
            (&worker.outbound_v4, libc::SOL_IP)
        } else {
            (&worker.outbound_v6, libc::SOL_IPV6)
        };
        let (accepted, _) = accept(listener);
        assert_eq!(original_destination(&accepted, level), to);
        assert_eq!(peer(&app), to);
    }
}

#[test]
fn what_stays_in_the_pod_is_neither_paced_nor_probed_for_bandwidth() {
    let lab = Lab::new();
    for way in [Way::V4, Way::V6] {
        let app = way.tcp(&lab);
        app.connect(&way.destination().into()).unwrap();
        let worker = way.arrives(&lab, &app);
        for end in [&app, &worker] {
            assert_eq!(congestion_control(end), "reno", "{way:?}");
        }
    }
    // What the mesh has no part in keeps the node's default.
    let listener = Way::V4.tcp(&lab);
    listener.bind(&address("127.0.0.1:0").into()).unwrap();
    listener.listen(1).unwrap();
    let app = Way::V4.tcp(&lab);
    let default = congestion_control(&app);
    app.connect(&local(&listener).into()).unwrap();
    let (accepted, _) = accept(&listener);
    for end in [&app, &accepted] {
        assert_eq!(congestion_control(end), default);
    }
}
