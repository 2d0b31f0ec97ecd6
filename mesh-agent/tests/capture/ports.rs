//! Ephemeral ports, of which a pod's captured connections and its worker's dials take their share.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use mesh_common::{RESERVED_PORTS, SO_ORIGINAL_DST};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, eventually};
use crate::names::{accept, address, local, original_destination};
use crate::outbound::nothing_left;

const APP: u16 = 8080;

fn sysctl(lab: &Lab, name: &str, value: &str) {
    lab.in_pod(|| fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap());
}

fn app_socket(lab: &Lab, like: IpAddr, kind: Type) -> Socket {
    let domain = Domain::for_address(SocketAddr::new(like, 0));
    lab.in_pod(|| Socket::new(domain, kind, None).unwrap())
}

fn app_listener(lab: &Lab, own: IpAddr) -> Socket {
    let listener = app_socket(lab, own, Type::STREAM);
    listener.bind(&SocketAddr::new(own, APP).into()).unwrap();
    listener.listen(64).unwrap();
    listener
}

/// A destination outside of the family of `own`.
fn outside(own: IpAddr, port: u16) -> SocketAddr {
    let ip = if own.is_ipv4() {
        "198.51.100.7"
    } else {
        "2001:db8::7"
    };
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// A port is no key: an app's captured connection and a worker's dial can have the same.
#[test]
fn connections_that_share_a_port_are_told_apart() {
    const EACH: u16 = 12;
    let lab = Lab::new();
    sysctl(&lab, "ip_local_port_range", "42000 42015");
    let worker = lab.worker();
    for (own, outbound, level) in [
        (lab.pod().v4, &worker.outbound_v4, libc::SOL_IP),
        (lab.pod().v6, &worker.outbound_v6, libc::SOL_IPV6),
    ] {
        let app = app_listener(&lab, own);
        let client = |n| SocketAddr::new(outside(own, 0).ip(), 1000 + n);
        let mut captured = Vec::new();
        let mut dialled = Vec::new();
        for n in 0..EACH {
            let socket = app_socket(&lab, own, Type::STREAM);
            socket.connect(&outside(own, 100 + n).into()).unwrap();
            captured.push(socket);
            let to = SocketAddr::new(own, APP);
            dialled.push(worker.process.dial_app(to, client(n)).unwrap());
        }
        let ports = |sockets: &[Socket]| -> BTreeSet<u16> {
            sockets.iter().map(|socket| local(socket).port()).collect()
        };
        let shared = ports(&captured).intersection(&ports(&dialled)).count();
        assert!(
            shared >= 8,
            "{shared} of 16 ports are shared by 12 and 12 sockets"
        );
        for n in 0..EACH {
            let (accepted, _) = accept(outbound);
            let original = original_destination(&accepted, level);
            assert_eq!(original, outside(own, 100 + n), "option {SO_ORIGINAL_DST}");
            let (_, from) = accept(&app);
            assert_eq!(from, client(n));
        }
        nothing_left(&lab);
    }
}

/// The limit that the design has: all of them go to one address and port.
#[test]
fn captured_connections_of_a_pod_are_as_many_as_its_ephemeral_ports() {
    let lab = Lab::new();
    sysctl(&lab, "ip_local_port_range", "42000 42007");
    for own in [lab.pod().v4, lab.pod().v6] {
        let dial = |port| {
            let socket = app_socket(&lab, own, Type::STREAM);
            socket.connect(&outside(own, port).into()).map(|()| socket)
        };
        let open: Vec<_> = (1..=8).map(|port| dial(port).unwrap()).collect();
        let error = dial(9).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{own}");
        drop(open);
        nothing_left(&lab);
    }
}

/// Why the worker dials its app from the loopback address. There a port in `TIME_WAIT` is free
/// again after a second (`tcp_tw_reuse`).
#[test]
fn short_dials_of_the_app_exhaust_the_pods_address_and_not_the_loopback() {
    let lab = Lab::new();
    sysctl(&lab, "ip_local_port_range", "42000 42007");
    let app = app_listener(&lab, lab.pod().v4);
    let to = SocketAddr::new(lab.pod().v4, APP);
    let worker = &lab.worker().process;
    // Closed by the worker first, which so has to wait.
    let finish = |dialled: Socket| {
        let (mut accepted, _) = accept(&app);
        drop(dialled);
        assert_eq!(accepted.read(&mut [0; 1]).unwrap(), 0);
    };
    for _ in 0..8 {
        finish(worker.dial(to).unwrap());
    }
    let error = worker.dial(to).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    for _ in 0..16 {
        finish(eventually("a port is free again", || {
            worker.dial_app(to, address("192.0.2.1:9")).ok()
        }));
    }
}

/// `bind` to port 0 is not seen by the bind hook; the sysctl that the agent sets is for that.
#[test]
fn port_0_is_never_one_of_the_meshs_once_they_are_reserved() {
    let lab = Lab::new();
    sysctl(&lab, "ip_local_port_range", "15001 15008");
    let bind = |ip: &str, kind| {
        let at = SocketAddr::new(ip.parse().unwrap(), 0);
        let socket = app_socket(&lab, at.ip(), kind);
        socket
            .bind(&at.into())
            .map(|()| (local(&socket).port(), socket))
    };
    let all: Vec<_> = (0..8)
        .map(|_| bind("0.0.0.0", Type::DGRAM).unwrap())
        .collect();
    assert!(all.iter().any(|(port, _)| RESERVED_PORTS.contains(port)));
    drop(all);
    let reserved = RESERVED_PORTS.map(|port| port.to_string()).join(",");
    sysctl(&lab, "ip_local_reserved_ports", &reserved);
    for kind in [Type::DGRAM, Type::STREAM] {
        for ip in ["0.0.0.0", "::"] {
            let mut sockets = Vec::new();
            let error = loop {
                match bind(ip, kind) {
                    Ok((port, socket)) => {
                        assert!(!RESERVED_PORTS.contains(&port), "{port}");
                        sockets.push(socket);
                    }
                    Err(error) => break error,
                }
            };
            assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
            assert_eq!(sockets.len(), 5, "{ip} {kind:?}");
        }
    }
}
