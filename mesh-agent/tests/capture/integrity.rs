//! What others take away or replace is noticed and put back.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mesh_agent::capture::{Capture, Deviation, Finding, Remedy};
use mesh_common::{ABI_VERSION, KernelReason};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, NODE_V4, in_netns};
use crate::names::{accept, address, original_destination};
use crate::program;

const OUTSIDE: &str = "198.51.100.7:443";

/// Looks and repairs, in the node's namespace.
pub(crate) fn check(lab: &mut Lab) -> Vec<Finding> {
    let node = lab.node_netns();
    let capture = lab.capture();
    in_netns(&node, || capture.check()).unwrap()
}

pub(crate) fn links(lab: &Lab) -> PathBuf {
    let instance = format!("nodemesh-{}/v{ABI_VERSION}/links", lab.prefix);
    lab.options.bpffs.join(instance)
}

fn names(lab: &Lab) -> BTreeSet<String> {
    let entries = fs::read_dir(links(lab)).unwrap();
    entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Frames of the pod's apps that the wall has dropped after one more was sent.
pub(crate) fn raw_syns_dropped(lab: &Lab) -> u64 {
    crate::wall::send_raw_syn(lab, address("10.88.0.1:80"));
    lab.refused(0, KernelReason::WallNotWorker)
}

/// Datagrams to the pod that the wall has dropped after one more was sent.
pub(crate) fn datagrams_dropped(lab: &Lab) -> u64 {
    let to = SocketAddr::new(lab.pod().v4, 8080);
    lab.in_node(|| {
        let socket = UdpSocket::bind((NODE_V4, 0)).unwrap();
        socket.send_to(b"x", to).unwrap()
    });
    lab.refused(0, KernelReason::WallUdp)
}

/// Outbound is captured, inbound steered, and the walls stand in both directions.
pub(crate) fn assert_whole(lab: &Lab) {
    let app = lab.app();
    let _dialled = app.dial(address(OUTSIDE)).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    assert_eq!(
        original_destination(&worker, libc::SOL_IP),
        address(OUTSIDE)
    );
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let _caller = lab.in_node(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let patience = Duration::from_secs(5);
        socket.connect_timeout(&to.into(), patience).unwrap();
        socket
    });
    accept(&lab.worker().plaintext_v4);
    let before = lab.refused(0, KernelReason::WallNotWorker);
    assert_eq!(raw_syns_dropped(lab), before + 1);
    let before = lab.refused(0, KernelReason::WallUdp);
    assert_eq!(datagrams_dropped(lab), before + 1);
}

fn repaired(findings: &[Finding], deviation: &Deviation) -> usize {
    for finding in findings {
        assert_eq!(
            (&finding.deviation, &finding.remedy),
            (deviation, &Remedy::Repaired),
            "{finding}"
        );
    }
    findings.len()
}

#[test]
fn what_nobody_touched_is_left_alone() {
    let mut lab = Lab::new();
    assert_eq!(check(&mut lab), []);
    lab.capture = None;
    let (options, node) = (lab.options.clone(), lab.node_netns());
    lab.capture = Some(in_netns(&node, || Capture::open(&options)).unwrap());
    assert_eq!(check(&mut lab), []);
    assert_eq!(check(&mut lab), []);
}

/// `bpftool link detach`, and whatever else takes a program off its hook. Filters have no links;
/// see `order`.
#[test]
fn every_program_that_was_taken_off_is_attached_again() {
    let mut lab = Lab::new();
    assert_eq!(check(&mut lab), []);
    let all = names(&lab);
    for link in &all {
        program::detach(program::pinned(&links(&lab).join(link)).as_fd());
    }
    let findings = check(&mut lab);
    assert_eq!(repaired(&findings, &Deviation::Detached), all.len());
    assert_eq!(names(&lab), all);
    assert_eq!(check(&mut lab), []);
    assert_whole(&lab);
}

#[test]
fn pins_that_were_removed_are_made_anew() {
    let mut lab = Lab::new();
    let all = names(&lab);
    for link in &all {
        fs::remove_file(links(&lab).join(link)).unwrap();
    }
    let findings = check(&mut lab);
    assert_eq!(repaired(&findings, &Deviation::Detached), all.len());
    assert_eq!(names(&lab), all);
    assert_eq!(check(&mut lab), []);
    assert_whole(&lab);
}

#[test]
fn programs_put_in_the_place_of_ours_are_replaced() {
    let mut lab = Lab::new();
    assert_eq!(check(&mut lab), []);
    let put = |link: &str, kind, attach_type, verdict| {
        let path = links(&lab).join(link);
        if !path.exists() {
            // A wall on a kernel without tcx.
            return 0;
        }
        let other = program::returning(kind, attach_type, verdict);
        program::replace(program::pinned(&path).as_fd(), other.as_fd());
        1
    };
    let walls = ["wall", "wall_in"].map(|wall| format!("{wall}-{}", lab.pod().ifindex));
    let others = put(
        "connect4",
        program::CGROUP_SOCK_ADDR,
        program::ATTACH_INET4_CONNECT,
        1,
    ) + put("steer-0", program::SK_LOOKUP, program::ATTACH_SK_LOOKUP, 1)
        + put(&walls[0], program::SCHED_CLS, 0, 0)
        + put(&walls[1], program::SCHED_CLS, 0, 0);
    let findings = check(&mut lab);
    assert_eq!(repaired(&findings, &Deviation::Replaced), others);
    assert_eq!(check(&mut lab), []);
    assert_whole(&lab);
}

/// After a restart the namespace of a pod isn't known before its worker is there.
#[test]
fn a_steering_that_can_not_be_put_back_yet_is_told() {
    let mut lab = Lab::new();
    lab.capture = None;
    let (options, node) = (lab.options.clone(), lab.node_netns());
    lab.capture = Some(in_netns(&node, || Capture::open(&options)).unwrap());
    program::detach(program::pinned(&links(&lab).join("steer-0")).as_fd());
    let findings = check(&mut lab);
    assert!(
        matches!(
            &findings[..],
            [Finding {
                slot: Some(0),
                deviation: Deviation::Detached,
                remedy: Remedy::Failed(_),
                ..
            }]
        ),
        "{findings:?}"
    );
    let netns = fs::File::open(crate::lab::netns_path(&lab.pod().netns)).unwrap();
    lab.capture().steer(0, netns.as_fd()).unwrap();
    assert_eq!(check(&mut lab), []);
    assert_whole(&lab);
}

/// For the documentation: with one pod.
#[test]
#[ignore = "measures"]
fn the_time_of_a_look() {
    let mut lab = Lab::new();
    let started = Instant::now();
    const LOOKS: u32 = 200;
    for _ in 0..LOOKS {
        assert_eq!(check(&mut lab), []);
    }
    println!("one pod: {:?} a look", started.elapsed() / LOOKS);
}
