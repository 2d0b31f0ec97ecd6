//! What steering stands on: how the kernel looks up who listens.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use mesh_common::KernelReason;
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, eventually, ip};
use crate::names::{accept, address, local, peer};
use crate::wall::walled;

const PORT: u16 = 8080;

/// A socket of the app, bound; without `SO_REUSEADDR` unless said.
fn bound(lab: &Lab, at: SocketAddr, reuse: bool) -> std::io::Result<Socket> {
    lab.in_pod(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.set_reuse_address(reuse)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&at.into())?;
        Ok(socket)
    })
}

fn app_listener(lab: &Lab, like: IpAddr) -> Socket {
    let listener = bound(lab, any(like), false).unwrap();
    listener.listen(8).unwrap();
    listener
}

/// Every address of that family, on the app's port.
fn any(like: IpAddr) -> SocketAddr {
    address(if like.is_ipv4() {
        "0.0.0.0:8080"
    } else {
        "[::]:8080"
    })
}

fn call(lab: &Lab, ip: IpAddr) -> std::io::Result<Socket> {
    lab.in_node(|| connect(SocketAddr::new(ip, PORT)))
}

fn connect(to: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Addresses of the first pod, each with the worker's listener for it.
fn inbound(lab: &Lab) -> [(IpAddr, &Socket); 2] {
    let worker = lab.worker();
    [
        (lab.pod().v4, &worker.plaintext_v4),
        (lab.pod().v6, &worker.plaintext_v6),
    ]
}

/// So "it came from `lo`" does not tell the pod's own calls from those outside.
#[test]
fn what_a_pod_dials_at_its_own_address_comes_in_by_the_device_that_has_it() {
    let lab = Lab::steered();
    for (own, worker) in inbound(&lab) {
        let app = app_listener(&lab, own);
        let caller = lab.in_pod(|| connect(SocketAddr::new(own, PORT))).unwrap();
        let (_, from) = accept(worker);
        assert_eq!(from, local(&caller));
        let loopback = if own.is_ipv4() {
            "127.0.0.1:8080"
        } else {
            "[::1]:8080"
        };
        let caller = lab.in_pod(|| connect(address(loopback))).unwrap();
        let (_, from) = accept(&app);
        assert_eq!(from, local(&caller));
    }
}

/// The worker's dial has another source than the address that it dials.
#[test]
fn a_worker_reaches_its_app_at_every_address_of_the_pod() {
    let lab = Lab::new();
    let netns = &lab.pod().netns;
    ip(&format!("-n {netns} addr add 10.88.0.22/24 dev eth0"));
    ip(&format!("-n {netns} addr add fd88::22/64 dev eth0 nodad"));
    for (own, client) in [
        ("10.88.0.22", address("192.0.2.1:999")),
        ("fd88::22", address("[2001:db8::1]:999")),
    ] {
        let to = SocketAddr::new(own.parse().unwrap(), PORT);
        let app = app_listener(&lab, to.ip());
        let _worker = lab.worker().process.dial_app(to, client).unwrap();
        let (accepted, from) = accept(&app);
        assert_eq!((from, local(&accepted)), (client, to));
        assert_eq!(peer(&accepted), client);
    }
}

#[test]
fn what_can_not_be_handed_to_the_worker_is_refused() {
    let mut lab = Lab::new();
    let apps = [lab.pod().v4, lab.pod().v6].map(|ip| (ip, app_listener(&lab, ip)));
    // Each in the place of the other family's.
    let worker = lab.pods[0].worker.as_ref().unwrap();
    let (v4, v6) = (worker.plaintext_v4.as_fd(), worker.plaintext_v6.as_fd());
    let capture = lab.capture.as_mut().unwrap();
    capture.set_listeners(0, v6, Some(v4)).unwrap();
    for (ip, app) in apps {
        let error = call(&lab, ip).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{ip}");
        app.set_nonblocking(true).unwrap();
        assert_eq!(app.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    assert!(lab.refused(0, KernelReason::LookupAssignFailed) >= 2);
}

/// The next worker, wherever it is, accepts what came while there was none. The walls take it
/// for the first one's, whose listener it was, even when that one's cgroup is gone.
#[test]
fn a_killed_workers_queue_and_its_trust_live_on_in_its_listener() {
    let mut lab = Lab::new();
    let worker = lab.pods[0].worker.take().unwrap();
    drop(worker.process);
    let callers = [lab.pod().v4, lab.pod().v6].map(|ip| {
        let mut caller = call(&lab, ip).unwrap();
        caller.write_all(b"while nobody was there").unwrap();
        caller
    });
    let cgroup = lab.pod().cgroup.clone();
    eventually("the worker's cgroup can be removed", || {
        fs::remove_dir(&cgroup).is_ok().then_some(())
    });
    let next = lab.app();
    for (mut caller, listener) in callers
        .iter()
        .zip([worker.plaintext_v4, worker.plaintext_v6])
    {
        let mut accepted = next.accept(&listener);
        let mut received = [0; 22];
        accepted.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"while nobody was there");
        accepted.write_all(b"answer").unwrap();
        caller.read_exact(&mut received[..6]).unwrap();
        assert_eq!(&received[..6], b"answer");
    }
    assert_eq!(walled(&lab), []);
}

/// Why app sockets are given `SO_REUSEADDR` when they bind.
#[test]
fn a_steered_connection_holds_the_port_that_it_was_for() {
    let lab = Lab::steered();
    for (ip, listener) in inbound(&lab) {
        let caller = call(&lab, ip).unwrap();
        let (accepted, _) = accept(listener);
        let refused = || bound(&lab, any(ip), false).unwrap_err().raw_os_error();
        assert_eq!(refused(), Some(libc::EADDRINUSE), "{ip}: while it is open");
        // The end that closes first keeps the connection for a while.
        drop(accepted);
        assert_eq!((&caller).read(&mut [0; 1]).unwrap(), 0);
        drop(caller);
        assert_eq!(refused(), Some(libc::EADDRINUSE), "{ip}: in TIME_WAIT");
        bound(&lab, any(ip), true).unwrap();
    }
}
