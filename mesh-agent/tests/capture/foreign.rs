//! Beside the programs of others, which were there before or came after.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_agent::capture::Capture;
use mesh_common::KernelReason;
use mesh_lab::foreign::{self, AttachType, Link, Map, Program, Target};
use socket2::{Domain, Socket, Type};

use crate::integrity::check;
use crate::lab::{Lab, NODE_V4, eventually, in_netns, netns_path};
use crate::names::{accept, address, local, original_destination, peer};
use crate::process::Process;
use crate::way::{DIRECTIONS, Direction, Foreign, Way, tc};

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

/// Somebody else's programs at every hook that ours are at, and where they are looked for.
struct Others {
    way: Way,
    cgroup: PathBuf,
    netns: File,
    at_device: [Foreign; 2],
    ids: BTreeMap<&'static str, u32>,
    _links: Vec<Link>,
}

impl Others {
    fn attach(lab: &Lab, way: Way) -> Self {
        let cgroup = lab.options.cgroup_root.clone();
        let netns = File::open(netns_path(&lab.pod().netns)).unwrap();
        let [(service, backend), _] = services();
        let cookie = lab.pod().cookie;
        let (_app, listener) = serve(lab, lab.pod().v4);
        let map = Map::of_socket(listener.as_fd()).unwrap();
        let (mut links, mut ids) = (Vec::new(), BTreeMap::new());
        for (name, kind, from, to) in [
            ("connect4", AttachType::Connect4, service, backend),
            ("getpeername4", AttachType::Getpeername4, backend, service),
        ] {
            let program = Program::translate(kind, cookie, from, to).unwrap();
            ids.insert(name, program.id().unwrap());
            links.push(program.attach_cgroup(&cgroup, kind).unwrap());
        }
        let steer = Program::steer(PORT, &map, false).unwrap();
        ids.insert("sk_lookup", steer.id().unwrap());
        let target = Target::Fd(netns.as_fd());
        links.push(steer.attach(target, AttachType::SkLookup, 0).unwrap());
        let program = Program::verdict(-1).unwrap();
        let at_device = DIRECTIONS.map(|direction| way.attach(lab, direction, &program));
        Self {
            way,
            cgroup,
            netns,
            at_device,
            ids,
            _links: links,
        }
    }

    /// Each is where it was; at the device there are that many programs besides.
    fn assert_untouched(&self, lab: &Lab, walls: usize, step: &str) {
        let cgroup = File::open(&self.cgroup).unwrap();
        for (name, target, kind) in [
            ("connect4", cgroup.as_fd(), AttachType::Connect4),
            ("getpeername4", cgroup.as_fd(), AttachType::Getpeername4),
            ("sk_lookup", self.netns.as_fd(), AttachType::SkLookup),
        ] {
            let programs = foreign::programs_at(Target::Fd(target), kind).unwrap();
            assert!(programs.contains(&self.ids[name]), "{step}: {name}");
        }
        for (direction, other) in DIRECTIONS.into_iter().zip(&self.at_device) {
            let order = self.way.order(lab, direction);
            assert_eq!(order[walls..], [other.id], "{step}: {direction:?}");
        }
    }
}

/// Loading, a restart, an update, an order put right, leaving and unloading.
#[test]
fn nothing_of_others_is_replaced_or_removed() {
    for &way in Way::all() {
        let mut lab = way.lab();
        let others = Others::attach(&lab, way);
        others.assert_untouched(&lab, 0, "before");
        lab.enrol(0);
        others.assert_untouched(&lab, 1, "enrolled");
        assert_eq!(check(&mut lab), []);
        // Whatever ran before is another program to the agent that starts now: so this is an
        // update as well. It would put up walls by tcx where it can.
        let by_clsact_by_choice = way == Way::Clsact && Way::all().contains(&Way::Tcx);
        if !by_clsact_by_choice {
            let before = way.order(&lab, Direction::Ingress)[0];
            lab.capture = None;
            let (options, node) = (lab.options.clone(), lab.node_netns());
            lab.capture = Some(in_netns(&node, || Capture::open(&options)).unwrap());
            assert_ne!(way.order(&lab, Direction::Ingress)[0], before);
            others.assert_untouched(&lab, 1, "updated");
        }
        let front = way.attach(&lab, Direction::Egress, &Program::verdict(0).unwrap());
        let findings = check(&mut lab);
        assert_eq!(findings.len(), 1, "{findings:?}");
        let order = way.order(&lab, Direction::Egress);
        assert_eq!(order[1..], [front.id, others.at_device[1].id], "{way:?}");
        drop(front);
        if way == Way::Clsact {
            remove_first_foreign(&lab);
        }
        eventually("the program in front is gone", || {
            (way.order(&lab, Direction::Egress).len() == 2).then_some(())
        });
        let (cookie, ifindex, node) = (lab.pod().cookie, lab.pod().ifindex, lab.node_netns());
        let capture = lab.capture();
        in_netns(&node, || capture.withdraw(cookie, 0, &[ifindex])).unwrap();
        others.assert_untouched(&lab, 0, "withdrawn");
        lab.enrol(0);
        others.assert_untouched(&lab, 1, "enrolled again");
        lab.capture = None;
        let options = lab.options.clone();
        in_netns(&node, || Capture::unload(&options)).unwrap();
        others.assert_untouched(&lab, 0, "unloaded");
    }
}

/// The filter that was added last, of those that aren't ours.
fn remove_first_foreign(lab: &Lab) {
    let list = tc(lab, "-j filter show dev veth0 egress");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let handles = list.as_array().unwrap().iter();
    let mut handles = handles.filter_map(|filter| filter["options"]["handle"].as_str());
    let handle = handles.find(|handle| !handle.starts_with("0x4e4")).unwrap();
    let filter = "filter del dev veth0 egress pref 1";
    tc(lab, &format!("{filter} handle {handle} bpf"));
}
