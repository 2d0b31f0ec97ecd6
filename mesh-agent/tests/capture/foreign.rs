//! Beside the programs of others, which were there before or came after.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use mesh_agent::capture::Capture;
use mesh_common::KernelReason;
use mesh_lab::foreign::{AttachType, Link, Map, Program, Target};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, NODE_V4, eventually, netns_path};
use crate::names::{accept, address, local, original_destination, peer};
use crate::process::Process;

const PORT: u16 = 8080;
/// A call's first packet may be lost while a new device comes up; the next follows after 1 s.
const PATIENCE: Duration = Duration::from_secs(5);
const UNANSWERED: Duration = Duration::from_secs(2);

/// An app that listens in the first pod, in a cgroup of its own as a container's.
fn serve(lab: &Lab, ip: IpAddr) -> (Process, Socket) {
    let app = lab.app();
    let listener = app.listen(SocketAddr::new(ip, PORT)).unwrap();
    listener.set_nonblocking(true).unwrap();
    (app, listener)
}

/// Hands what comes for the app's port in the first pod straight to the app.
fn steer(lab: &Lab, listener: &Socket) -> Link {
    let netns = File::open(netns_path(&lab.pod().netns)).unwrap();
    let map = Map::of_socket(listener.as_fd()).unwrap();
    let program = Program::steer(PORT, &map, true).unwrap();
    let target = Target::Fd(netns.as_fd());
    program.attach(target, AttachType::SkLookup, 0).unwrap()
}

fn call(lab: &Lab, ip: IpAddr, timeout: Duration) -> std::io::Result<Socket> {
    let to = SocketAddr::new(ip, PORT);
    lab.in_node(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.connect_timeout(&to.into(), timeout)?;
        Ok(socket)
    })
}

#[test]
fn a_steering_before_ours_is_overruled() {
    let mut lab = Lab::node();
    lab.add_pod();
    let ips = [lab.pod().v4, lab.pod().v6];
    let apps = ips.map(|ip| serve(&lab, ip));
    let _links = apps.each_ref().map(|(_, listener)| steer(&lab, listener));
    lab.enrol(0);
    let worker = lab.worker();
    let listeners = [&worker.plaintext_v4, &worker.plaintext_v6];
    for ((ip, listener), (_, app)) in ips.into_iter().zip(listeners).zip(&apps) {
        let caller = call(&lab, ip, PATIENCE).unwrap();
        let (_worker, from) = accept(listener);
        assert_eq!(from, local(&caller));
        assert_eq!(app.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// The last choice counts, so the app is found; but no answer of its leaves the pod.
#[test]
fn a_steering_after_ours_gains_nothing() {
    let lab = Lab::new();
    for ip in [lab.pod().v4, lab.pod().v6] {
        let (_app, listener) = serve(&lab, ip);
        let _link = steer(&lab, &listener);
        let before = lab.refused(0, KernelReason::WallNotWorker);
        assert_eq!(
            call(&lab, ip, UNANSWERED).unwrap_err().kind(),
            ErrorKind::TimedOut
        );
        assert!(lab.refused(0, KernelReason::WallNotWorker) > before);
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// Without a listener of ours our drop counts for nothing beside the other's choice.
#[test]
fn a_steering_before_ours_gains_nothing_without_a_worker() {
    let mut lab = Lab::node();
    lab.add_pod();
    let ip = lab.pod().v4;
    let (_app, listener) = serve(&lab, ip);
    let _link = steer(&lab, &listener);
    lab.enrol(0);
    lab.pods[0].worker = None;
    // Another test's process, just forked, may still have a duplicate of its listener.
    eventually("the listener is closed", || {
        let called = call(&lab, ip, UNANSWERED);
        called
            .is_err_and(|e| e.kind() == ErrorKind::TimedOut)
            .then_some(())
    });
    assert!(lab.refused(0, KernelReason::WallNotWorker) > 0);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// A socket load balancer at a cgroup: `connect` to a service is one to a pod, and
/// `getpeername` says the service.
fn balance(lab: &Lab, cgroup: &Path, service: SocketAddr, backend: SocketAddr) -> [Link; 2] {
    let (connect, name) = if service.is_ipv4() {
        (AttachType::Connect4, AttachType::Getpeername4)
    } else {
        (AttachType::Connect6, AttachType::Getpeername6)
    };
    [(connect, service, backend), (name, backend, service)].map(|(kind, from, to)| {
        let program = Program::translate(kind, lab.pod().cookie, from, to).unwrap();
        program.attach_cgroup(cgroup, kind).unwrap()
    })
}

/// Services, and a pod behind each.
fn services() -> [(SocketAddr, SocketAddr); 2] {
    [
        ("198.18.0.1:80", "10.99.0.2:8080"),
        ("[2001:db8:18::1]:80", "[fd99::2]:8080"),
    ]
    .map(|(service, backend)| (address(service), address(backend)))
}

/// Dials the service: what the worker is told, and what `getpeername` tells the app.
fn dialled(lab: &Lab, service: SocketAddr) -> (SocketAddr, SocketAddr) {
    let app = lab.app();
    let socket = app.dial(service).unwrap();
    let (listener, level) = if service.is_ipv4() {
        (&lab.worker().outbound_v4, libc::SOL_IP)
    } else {
        (&lab.worker().outbound_v6, libc::SOL_IPV6)
    };
    let (worker, from) = accept(listener);
    assert_eq!(from.port(), local(&socket).port());
    (original_destination(&worker, level), peer(&socket))
}

/// At one cgroup programs run in the order in which they were attached. A balancer that came
/// first has chosen: the worker, and the app, are told the pod.
#[test]
fn behind_a_load_balancer_the_worker_is_told_the_pod_that_was_chosen() {
    let mut lab = Lab::node();
    // A balancer for the pod, before the mesh is there at all.
    lab.capture = None;
    Capture::unload(&lab.options).unwrap();
    lab.add_pod();
    let (services, root) = (services(), lab.options.cgroup_root.clone());
    let _links = services.map(|(service, backend)| balance(&lab, &root, service, backend));
    lab.capture = Some(Capture::open(&lab.options).unwrap());
    lab.enrol(0);
    for (service, backend) in services {
        assert_eq!(dialled(&lab, service), (backend, backend));
    }
}

/// One that came after ours finds the worker's address, which is no service of its.
#[test]
fn before_a_load_balancer_the_worker_is_told_the_service() {
    let lab = Lab::new();
    let (services, root) = (services(), &lab.options.cgroup_root);
    let _links = services.map(|(service, backend)| balance(&lab, root, service, backend));
    for (service, _) in services {
        assert_eq!(dialled(&lab, service), (service, service));
    }
}

/// A cgroup's own programs run before those of the cgroups around it, whenever they came.
#[test]
fn a_load_balancer_in_the_pods_own_cgroup_comes_first() {
    let lab = Lab::new();
    let (services, cgroup) = (services(), lab.app_cgroup());
    let _links = services.map(|(service, backend)| balance(&lab, &cgroup, service, backend));
    for (service, backend) in services {
        assert_eq!(dialled(&lab, service), (backend, backend));
    }
}

/// What a program after ours makes of the worker's address is a connection of the app's own.
#[test]
fn a_connection_turned_away_from_the_worker_ends_at_the_wall() {
    let lab = Lab::new();
    let listener = lab.in_node(|| std::net::TcpListener::bind((NODE_V4, 0)).unwrap());
    let outside = listener.local_addr().unwrap();
    let worker = SocketAddr::new([127, 0, 0, 1].into(), mesh_common::PORT_OUTBOUND);
    let kind = AttachType::Connect4;
    let program = Program::translate(kind, lab.pod().cookie, worker, outside).unwrap();
    let _link = program.attach_cgroup(&lab.options.cgroup_root, kind);
    let app = lab.app();
    let socket = app.tcp(outside);
    socket.set_nonblocking(true).unwrap();
    let error = app.connect(&socket, outside).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
    eventually("the wall counts it", || {
        (lab.refused(0, KernelReason::WallNotWorker) > 0).then_some(())
    });
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}
