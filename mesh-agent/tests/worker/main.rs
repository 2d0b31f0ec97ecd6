//! The worker as the supervisor meets it: through its channel alone, with listeners of its
//! own making, in a network namespace without capture. Needs root.

#[path = "../../src/worker/tests/pki.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests inside the crate"
)]
mod pki;
mod supervisor;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mesh_api::worker::FdKind;
use mesh_lab::netns::Netns;
use socket2::Socket;
use supervisor::Supervisor;

fn netns(name: &str) -> Netns {
    let name = format!("nmwk-{name}-{}", std::process::id());
    let made = Netns::create_all(&[name]).expect("root makes network namespaces");
    made.into_iter().next().expect("one was asked for")
}

/// Connects and is reset, be it before `connect` has returned. A port where nobody listens
/// would give ECONNREFUSED.
fn expect_reset(netns: &Netns, to: &str) {
    let to: SocketAddr = to.parse().unwrap();
    let error = netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.read(&mut [0; 1])
    });
    let error = error.expect_err("a reset was due");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

const ALL: [FdKind; 6] = [
    FdKind::OutboundV4,
    FdKind::OutboundV6,
    FdKind::PlaintextV4,
    FdKind::PlaintextV6,
    FdKind::HboneV4,
    FdKind::HboneV6,
];

#[test]
fn it_listens_on_both_families_and_refuses_what_it_can_not_place() {
    let netns = netns("both");
    let worker = Supervisor::start(&netns);
    assert_eq!(worker.listeners(), ALL);
    // Without capture nobody knows where this wants to go.
    for to in ["127.0.0.1:15001", "[::1]:15001"] {
        expect_reset(&netns, to);
    }
    worker.until_refused("original_destination_unknown", 2);
    for to in ["127.0.0.1:15006", "[::1]:15006"] {
        expect_reset(&netns, to);
    }
    worker.until_refused("inbound_plaintext", 2);
    worker.drain();
}

#[test]
fn a_pod_without_ipv6_is_served() {
    let netns = netns("v4");
    let off = [("ipv6/conf/all/disable_ipv6", "1")];
    netns.sysctl(&off).unwrap();
    let worker = Supervisor::start(&netns);
    let listeners = worker.listeners();
    assert!(!listeners.contains(&FdKind::OutboundV6), "{listeners:?}");
    for kind in [FdKind::OutboundV4, FdKind::PlaintextV4, FdKind::HboneV4] {
        assert!(listeners.contains(&kind), "{listeners:?}");
    }
    expect_reset(&netns, "127.0.0.1:15006");
    worker.drain();
}

#[test]
fn what_is_accepted_starts_with_what_each_connection_needs() {
    let netns = netns("options");
    let worker = Supervisor::start(&netns);
    for kind in worker.listeners() {
        let listener = Socket::from(worker.listener(kind));
        assert!(listener.tcp_nodelay().unwrap(), "{kind:?}");
        // A tunnel's last frames must arrive; an app's connection that is cut must show it.
        let tunnels = matches!(kind, FdKind::HboneV4 | FdKind::HboneV6);
        let linger = (!tunnels).then_some(Duration::ZERO);
        assert_eq!(listener.linger().unwrap(), linger, "{kind:?}");
    }
    worker.drain();
}

#[test]
fn a_listener_that_is_killed_is_made_anew_and_handed_over() {
    let netns = netns("killed");
    let worker = Supervisor::start(&netns);
    for (kind, to) in [
        (FdKind::PlaintextV4, "127.0.0.1:15006"),
        (FdKind::PlaintextV6, "[::1]:15006"),
    ] {
        let before = worker.listener(kind);
        // What `ss -K` does to a listener: it stops listening, its descriptors live on.
        // SAFETY: the descriptor is open.
        let rc = unsafe { libc::shutdown(before.as_raw_fd(), libc::SHUT_RD) };
        assert_eq!(rc, 0);
        worker.until_replaced(kind, &before);
        assert_eq!(worker.listeners(), ALL);
        expect_reset(&netns, to);
    }
    worker.drain();
}

#[test]
fn a_port_that_is_taken_is_named() {
    let netns = netns("taken");
    let _squatter = netns.run(|| std::net::TcpListener::bind("0.0.0.0:15008").unwrap());
    let why = Supervisor::start_in_vain(&netns);
    assert!(
        why.contains("0.0.0.0:15008") && why.contains("in use"),
        "{why}"
    );
}
