//! What an app dials arrives at its worker, with the original destination.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use mesh_common::{KernelReason, POD_HAS_V6};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, NODE_V4, eventually};
use crate::names::{accept, address, local, original_destination, peer};

/// Nobody's addresses.
const V4: &str = "198.51.100.7:443";
const V6: &str = "[2001:db8::7]:443";

fn tcp(lab: &Lab, domain: Domain) -> Socket {
    lab.in_pod(|| Socket::new(domain, Type::STREAM, None).unwrap())
}

fn dial(lab: &Lab, to: SocketAddr) -> io::Result<Socket> {
    let socket = tcp(lab, Domain::for_address(to));
    socket.connect(&to.into())?;
    Ok(socket)
}

fn errno(result: io::Result<Socket>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

pub(crate) fn nothing_left(lab: &Lab) {
    let capture = lab.capture.as_ref().unwrap();
    eventually("no flow and no reservation is left", || {
        (capture.unfinished(0).unwrap() == (0, 0)).then_some(())
    });
}

#[test]
fn ipv4_arrives_with_its_original_destination_and_names() {
    let lab = Lab::new();
    let app = dial(&lab, address(V4)).unwrap();
    let (worker, from) = accept(&lab.worker().outbound_v4);
    assert_eq!(original_destination(&worker, libc::SOL_IP), address(V4));
    assert_eq!(peer(&app), address(V4));
    assert_eq!(local(&app).ip(), lab.pod().v4);
    assert_eq!(local(&app).port(), from.port());
    nothing_left(&lab);
}

#[test]
fn ipv6_arrives_with_its_original_destination_and_names() {
    let lab = Lab::new();
    let app = dial(&lab, address(V6)).unwrap();
    let (worker, from) = accept(&lab.worker().outbound_v6);
    assert_eq!(original_destination(&worker, libc::SOL_IPV6), address(V6));
    assert_eq!(peer(&app), address(V6));
    assert_eq!(local(&app).ip(), lab.pod().v6);
    assert_eq!(local(&app).port(), from.port());
    nothing_left(&lab);
}

#[test]
fn a_v4_mapped_destination_goes_to_the_ipv4_listener() {
    let lab = Lab::new();
    let mapped = address("[::ffff:198.51.100.7]:443");
    let app = dial(&lab, mapped).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    assert_eq!(original_destination(&worker, libc::SOL_IP), address(V4));
    assert_eq!(peer(&app), mapped);
    assert_eq!(
        local(&app).ip(),
        "::ffff:10.88.0.2".parse::<std::net::IpAddr>().unwrap()
    );
    nothing_left(&lab);
}

#[test]
fn without_an_ipv6_listener_ipv6_goes_to_the_ipv4_one() {
    let mut lab = Lab::new();
    let mut config = lab.pod().config;
    config.flags &= !mesh_common::POD_HAS_LISTENER_V6;
    let cookie = lab.pod().cookie;
    lab.capture().enrol(cookie, config).unwrap();
    let app = dial(&lab, address(V6)).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    assert_eq!(original_destination(&worker, libc::SOL_IPV6), address(V6));
    assert_eq!(peer(&app), address(V6));
    assert_eq!(local(&app).ip(), lab.pod().v6);
}

#[test]
fn local_destinations_stay_local() {
    let lab = Lab::new();
    let listen = |at: &str| {
        let at = address(at);
        let listener = tcp(&lab, Domain::for_address(at));
        listener.bind(&at.into()).unwrap();
        listener.listen(8).unwrap();
        let port = local(&listener).port();
        (listener, port)
    };
    let (v4, port4) = listen("127.0.0.1:0");
    let (v6, port6) = listen("[::1]:0");
    for (ip, listener, port) in [
        ("127.0.0.1", &v4, port4),
        ("0.0.0.0", &v4, port4),
        ("::ffff:127.0.0.1", &v4, port4),
        ("::1", &v6, port6),
        ("::", &v6, port6),
    ] {
        let app = dial(&lab, SocketAddr::new(ip.parse().unwrap(), port)).unwrap();
        let (accepted, from) = accept(listener);
        assert_eq!(peer(&accepted).port(), local(&app).port(), "{ip}");
        assert!(from.ip().is_loopback(), "{ip}");
        assert!(peer(&app).ip().to_canonical().is_loopback(), "{ip}");
        assert!(local(&app).ip().to_canonical().is_loopback(), "{ip}");
    }
}

#[test]
fn a_socket_that_was_captured_and_is_connected_again_has_no_stale_names() {
    let lab = Lab::new();
    let listener = tcp(&lab, Domain::IPV4);
    listener.bind(&address("127.0.0.1:0").into()).unwrap();
    listener.listen(8).unwrap();
    let app = dial(&lab, address(V4)).unwrap();
    disconnect(&app);
    assert!(local(&app).ip().is_unspecified());
    app.connect(&local(&listener).into()).unwrap();
    assert_eq!(peer(&app), local(&listener));
    assert!(local(&app).ip().is_loopback());
    disconnect(&app);
    app.connect(&address("192.0.2.9:80").into()).unwrap();
    assert_eq!(peer(&app), address("192.0.2.9:80"));
    let (first, _) = accept(&lab.worker().outbound_v4);
    drop(first);
    let (second, _) = accept(&lab.worker().outbound_v4);
    let original = original_destination(&second, libc::SOL_IP);
    assert_eq!(original, address("192.0.2.9:80"));
    nothing_left(&lab);
}

pub(crate) fn disconnect(socket: &Socket) {
    let unspecified: [u8; 16] = [0; 16];
    // SAFETY: a sockaddr of family AF_UNSPEC, as long as said.
    let status = unsafe { libc::connect(socket.as_raw_fd(), unspecified.as_ptr().cast(), 16) };
    assert_eq!(status, 0);
}

#[test]
fn the_meshs_ports_are_refused_wherever_they_are() {
    let lab = Lab::new();
    let reserved = [
        "127.0.0.1:15001",
        "[::1]:15001",
        "10.88.0.2:15008",
        "198.51.100.7:15006",
    ];
    for to in reserved {
        assert_eq!(errno(dial(&lab, address(to))), libc::ECONNREFUSED, "{to}");
    }
    assert_eq!(lab.refused(0, KernelReason::ConnectReservedPort), 4);
}

#[test]
fn a_family_without_a_route_fails_as_without_the_mesh() {
    let mut lab = Lab::new();
    let mut config = lab.pod().config;
    config.flags &= !POD_HAS_V6;
    let cookie = lab.pod().cookie;
    lab.capture().enrol(cookie, config).unwrap();
    assert_eq!(errno(dial(&lab, address(V6))), libc::ENETUNREACH);
    assert_eq!(lab.refused(0, KernelReason::ConnectNoRoute), 1);
    dial(&lab, address(V4)).unwrap();
}

#[test]
fn what_was_dialled_and_left_before_it_was_accepted_leaves_nothing() {
    let lab = Lab::new();
    for _ in 0..100 {
        drop(dial(&lab, address(V4)).unwrap());
        drop(dial(&lab, address(V6)).unwrap());
    }
    nothing_left(&lab);
}

#[test]
fn a_connect_that_fails_before_its_syn_gives_its_place_back() {
    let lab = Lab::new();
    let bound = SocketAddr::new(lab.pod().v4, 40_000);
    let socket = || {
        let socket = tcp(&lab, Domain::IPV4);
        socket.set_reuse_address(true).unwrap();
        socket.bind(&bound.into()).unwrap();
        socket
    };
    let (first, second) = (socket(), socket());
    first.connect(&address(V4).into()).unwrap();
    // Both would have the same tuple to the listener.
    let error = second.connect(&address(V4).into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    let capture = lab.capture.as_ref().unwrap();
    let (_worker, _) = accept(&lab.worker().outbound_v4);
    assert_eq!(capture.unfinished(0).unwrap(), (0, 1));
    drop(second);
    nothing_left(&lab);
}

#[test]
fn a_pod_that_is_not_enrolled_is_untouched() {
    let mut lab = Lab::new();
    lab.add_pod();
    let netns = lab.pods[1].netns.clone();
    let listener = lab.in_node(|| {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address("0.0.0.0:0").into()).unwrap();
        listener.listen(8).unwrap();
        listener
    });
    let to = SocketAddr::new(NODE_V4.parse().unwrap(), local(&listener).port());
    let app = crate::lab::in_netns(&netns, || {
        let app = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        app.connect(&to.into()).unwrap();
        app
    });
    let (_accepted, from) = accept(&listener);
    assert_eq!(from, local(&app));
    assert_eq!(peer(&app), to);
    assert_eq!(local(&app).ip(), lab.pods[1].v4);
}

#[test]
fn the_private_option_is_nothing_to_an_app() {
    let lab = Lab::new();
    let app = lab.app();
    let socket = app.tcp(address(V4));
    let error = crate::process::label(&socket, address("192.0.2.1:1")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT));
    app.connect(&socket, address(V4)).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    assert_eq!(original_destination(&worker, libc::SOL_IP), address(V4));
}
