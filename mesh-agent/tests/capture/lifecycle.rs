//! Re-adoption, replacement, withdrawal, removal.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use mesh_agent::capture::{Capture, CaptureError};
use mesh_common::{ABI_VERSION, KernelReason, WallConfig};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, NODE_V4, in_netns};
use crate::names::{accept, address, local, original_destination, peer};
use crate::{device, program};

const OUTSIDE: &str = "198.51.100.7:443";

fn dial(lab: &Lab, to: SocketAddr) -> std::io::Result<Socket> {
    lab.in_pod(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
        Ok(socket)
    })
}

fn reopen(lab: &mut Lab) {
    lab.capture = None;
    let options = lab.options.clone();
    let node = lab.node_netns();
    let capture = in_netns(&node, || Capture::open(&options));
    lab.capture = Some(capture.unwrap_or_else(|e| panic!("{e}")));
}

fn links(lab: &Lab) -> PathBuf {
    let instance = format!("nodemesh-{}/v{ABI_VERSION}/links", lab.prefix);
    lab.options.bpffs.join(instance)
}

fn listing(folder: &PathBuf) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn capture_stands_without_an_agent_and_is_taken_over_with_what_is_under_way() {
    let mut lab = Lab::new();
    let before = listing(&links(&lab));
    let app = dial(&lab, address(OUTSIDE)).unwrap();
    lab.capture = None;
    let without = dial(&lab, address("192.0.2.1:80")).unwrap();
    reopen(&mut lab);
    for (app, to) in [(app, OUTSIDE), (without, "192.0.2.1:80")] {
        let (worker, _) = accept(&lab.worker().outbound_v4);
        assert_eq!(original_destination(&worker, libc::SOL_IP), address(to));
        assert_eq!(peer(&app), address(to));
    }
    let (cookie, config) = (lab.pod().cookie, lab.pod().config);
    assert_eq!(lab.capture().enrolled().unwrap(), [(cookie, config)]);
    assert_eq!(listing(&links(&lab)), before);
}

#[test]
fn other_programs_are_replaced_in_their_links_by_opening() {
    let mut lab = Lab::new();
    let listener = lab.in_node(|| {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address("0.0.0.0:0").into()).unwrap();
        listener.listen(8).unwrap();
        listener
    });
    let server = SocketAddr::new(NODE_V4.parse().unwrap(), local(&listener).port());
    let put = |name: &str, kind, attach_type, value| {
        let other = program::returning(kind, attach_type, value);
        let link = program::pinned(&links(&lab).join(name));
        program::replace(link.as_fd(), other.as_fd());
    };
    // An old version that captures, steers and walls nothing.
    put(
        "connect4",
        program::CGROUP_SOCK_ADDR,
        program::ATTACH_INET4_CONNECT,
        1,
    );
    put("steer-0", program::SK_LOOKUP, program::ATTACH_SK_LOOKUP, 1);
    for (wall, _) in device::WALLS {
        device::put(&lab, wall, &program::returning(program::SCHED_CLS, 0, 0));
    }
    dial(&lab, server).unwrap();
    accept(&listener);

    reopen(&mut lab);
    dial(&lab, server).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    assert_eq!(original_destination(&worker, libc::SOL_IP), server);
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let caller = lab.in_node(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .connect_timeout(&to.into(), Duration::from_secs(2))
            .unwrap();
        socket
    });
    let (steered, from) = accept(&lab.worker().plaintext_v4);
    assert_eq!((local(&steered), from), (to, local(&caller)));
    let before = lab.refused(0, KernelReason::WallNotWorker);
    crate::wall::send_raw_syn(&lab, server);
    assert_eq!(lab.refused(0, KernelReason::WallNotWorker), before + 1);
    lab.in_node(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to))
        .unwrap();
    assert_eq!(lab.refused(0, KernelReason::WallUdp), 1);
}

#[test]
fn a_wall_that_an_agent_left_unfinished_is_put_up_by_opening() {
    let mut lab = Lab::new();
    let before = listing(&links(&lab));
    for (wall, _) in device::WALLS {
        device::take_down(&lab, wall);
    }
    reopen(&mut lab);
    assert_eq!(listing(&links(&lab)), before);
    crate::wall::send_raw_syn(&lab, address("10.88.0.1:80"));
    assert_eq!(lab.refused(0, KernelReason::WallNotWorker), 1);
    let to = SocketAddr::new(lab.pod().v4, 8080);
    lab.in_node(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to))
        .unwrap();
    assert_eq!(lab.refused(0, KernelReason::WallUdp), 1);
}

#[test]
fn the_walls_are_first_in_order() {
    let mut lab = Lab::node();
    lab.add_pod();
    let other = program::returning(program::SCHED_CLS, 0, 0);
    let _links = device::WALLS.map(|(wall, _)| device::attach_foreign(&lab, wall, &other));
    lab.enrol(0);
    for (wall, _) in device::WALLS {
        assert_eq!(device::order(&lab, wall), [wall, ""]);
    }
}

#[test]
fn another_cgroup_is_not_trusted_under_the_same_name() {
    let mut lab = Lab::new();
    lab.capture = None;
    let mut options = lab.options.clone();
    options.mesh_cgroup = lab.app_cgroup();
    let error = Capture::open(&options).unwrap_err();
    assert!(
        matches!(error, CaptureError::CgroupMismatch { .. }),
        "{error}"
    );
}

#[test]
fn what_a_dying_agent_left_half_made_is_replaced() {
    let lab = Lab::node();
    let instance = lab.options.bpffs.join(format!("nodemesh-{}", lab.prefix));
    Capture::unload(&lab.options).unwrap();
    for part in ["new/maps", "new/links"] {
        fs::create_dir_all(instance.join(part)).unwrap();
    }
    drop(Capture::open(&lab.options).unwrap());
    assert_eq!(listing(&instance), [format!("v{ABI_VERSION}")]);
}

#[test]
fn withdrawing_leaves_nothing_of_the_pod() {
    let mut lab = Lab::node();
    let without = listing(&links(&lab));
    lab.add_pod();
    lab.enrol(0);
    let _under_way = dial(&lab, address(OUTSIDE)).unwrap();
    let (cookie, slot, ifindex) = (lab.pod().cookie, lab.pod().slot, lab.pod().ifindex);
    let node = lab.node_netns();
    let capture = lab.capture();
    in_netns(&node, || capture.withdraw(cookie, slot, &[ifindex])).unwrap();
    // Again is no error.
    in_netns(&node, || capture.withdraw(cookie, slot, &[ifindex])).unwrap();
    assert!(capture.enrolled().unwrap().is_empty());
    assert!(capture.walls().unwrap().is_empty());
    assert!(capture.refusals(slot).unwrap().is_empty());
    assert!(capture.unfinished(slot).is_err(), "the slot still has maps");
    assert_eq!(listing(&links(&lab)), without);
    // And the pod is as if it had never been enrolled.
    let app = in_netns(&lab.pod().netns, || {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address("0.0.0.0:8080").into()).unwrap();
        listener.listen(8).unwrap();
        listener
    });
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let caller = lab.in_node(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .connect_timeout(&to.into(), Duration::from_secs(2))
            .unwrap();
        socket
    });
    let (_, from) = accept(&app);
    assert_eq!(from, local(&caller));
}

#[test]
fn unloading_removes_everything() {
    let mut lab = Lab::new();
    lab.capture = None;
    let options = lab.options.clone();
    in_netns(&lab.node_netns(), || Capture::unload(&options)).unwrap();
    let instance = lab.options.bpffs.join(format!("nodemesh-{}", lab.prefix));
    assert_eq!(
        fs::metadata(&instance).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let error = dial(&lab, SocketAddr::new(NODE_V4.parse().unwrap(), 9)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "still captured");
    Capture::unload(&lab.options).unwrap();
}

#[test]
fn a_wall_without_a_device_is_an_error_that_names_it() {
    let mut lab = Lab::node();
    let wall = WallConfig {
        worker_cgroup_id: 1,
        slot: 0,
        flags: 0,
        address_v4: [0; 16],
        address_v6: [0; 16],
    };
    let node = lab.node_netns();
    let capture = lab.capture();
    let error = in_netns(&node, || capture.attach_wall(4242, wall)).unwrap_err();
    assert!(error.to_string().contains("4242"), "{error}");
}

#[test]
fn refusals_come_out_of_the_ring_buffer_within_the_pods_budget() {
    let lab = Lab::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut events = lab.capture.as_ref().unwrap().events().unwrap();
        for _ in 0..200 {
            dial(&lab, address("10.88.0.2:15008")).unwrap_err();
        }
        let event = events.next().await.unwrap();
        assert_eq!(event.reason, KernelReason::ConnectReservedPort as u32);
        assert_eq!((event.slot, event.destination_port), (0, 15008));
        assert_eq!(event.destination, mesh_common::mapped_v4([10, 88, 0, 2]));
        assert_eq!(lab.refused(0, KernelReason::ConnectReservedPort), 200);
        let mut seen = 1_u32;
        let pause = Duration::from_millis(300);
        while tokio::time::timeout(pause, events.next()).await.is_ok() {
            seen += 1;
        }
        let budget = mesh_common::EVENTS_PER_POD_PER_SECOND;
        assert!(
            (budget..200).contains(&seen),
            "{seen} events for 200 refusals"
        );
    });
}
