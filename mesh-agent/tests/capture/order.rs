//! Walls are the first programs of their devices, and steering the last of its namespace,
//! whatever others attach later.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_agent::capture::{Deviation, Finding, Remedy};
use mesh_common::KernelReason;
use mesh_lab::foreign::{self, AttachType, Map, Program, Target};
use socket2::{Domain, Socket, Type};

use crate::integrity::{assert_whole, check, datagrams_dropped, raw_syns_dropped};
use crate::lab::{Lab, netns_path};
use crate::names::accept;
use crate::way::{DIRECTIONS, Direction, Way, tc};

/// A verdict that lets a frame pass and ends the look at it (`TC_ACT_OK`).
const PASS: i32 = 0;
/// A verdict that leaves it to the next program (`TC_ACT_UNSPEC`).
const NEXT: i32 = -1;

fn only(findings: &[Finding], deviation: &Deviation, remedy: impl Fn(&Remedy) -> bool) {
    let [finding] = findings else {
        panic!("{findings:?}")
    };
    assert_eq!(&finding.deviation, deviation, "{finding}");
    assert!(remedy(&finding.remedy), "{finding}");
    assert_eq!(finding.slot, Some(0));
}

fn is_repaired(remedy: &Remedy) -> bool {
    *remedy == Remedy::Repaired
}

fn is_cut_off(remedy: &Remedy) -> bool {
    matches!(remedy, Remedy::CutOff(_))
}

fn dropped(lab: &Lab, direction: Direction) -> u64 {
    match direction {
        Direction::Ingress => raw_syns_dropped(lab),
        Direction::Egress => datagrams_dropped(lab),
    }
}

#[test]
fn a_program_put_before_a_wall_is_behind_it_after_the_next_look() {
    for &way in Way::all() {
        for direction in DIRECTIONS {
            let mut lab = way.lab();
            lab.enrol(0);
            assert_eq!(check(&mut lab), []);
            let before = dropped(&lab, direction);
            let other = way.attach(&lab, direction, &Program::verdict(PASS).unwrap());
            assert_eq!(dropped(&lab, direction), before, "{way:?} {direction:?}");
            only(&check(&mut lab), &Deviation::Order, is_repaired);
            let order = way.order(&lab, direction);
            assert_eq!(order.len(), 2, "{way:?} {direction:?}: {order:?}");
            assert_eq!(order[1], other.id, "{way:?} {direction:?}");
            assert_eq!(check(&mut lab), []);
            assert_whole(&lab);
        }
    }
}

#[test]
fn programs_that_were_there_before_a_wall_are_behind_it() {
    for &way in Way::all() {
        let mut lab = way.lab();
        let program = Program::verdict(PASS).unwrap();
        let others = DIRECTIONS.map(|direction| way.attach(&lab, direction, &program));
        lab.enrol(0);
        for (direction, other) in DIRECTIONS.into_iter().zip(&others) {
            let order = way.order(&lab, direction);
            assert_eq!(order[1..], [other.id], "{way:?} {direction:?}");
        }
        assert_eq!(check(&mut lab), []);
        assert_whole(&lab);
    }
}

/// The other program judges nothing, so the wall does as long as it stands: at every moment.
#[test]
fn while_a_wall_is_put_first_nothing_passes() {
    for &way in Way::all() {
        let mut lab = way.lab();
        lab.enrol(0);
        let protocol = i32::from(crate::frame::IPV4.to_be());
        let tap = lab.in_node(|| {
            Socket::new(
                Domain::PACKET,
                Type::DGRAM,
                Some(socket2::Protocol::from(protocol)),
            )
            .unwrap()
        });
        let app = lab.app();
        let raw = crate::wall::raw_socket(&app);
        let segment = crate::frame::tcp(80, crate::frame::SYN, &[], &[]);
        let (from, to) = (crate::wall::POD, crate::wall::NODE);
        let packet = crate::frame::ipv4(from, to, crate::wall::TCP, 0, &segment);
        let done = AtomicBool::new(false);
        let before = lab.refused(0, KernelReason::WallNotWorker);
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0;
                while !done.load(Ordering::Relaxed) {
                    crate::frame::send_packet(&raw, to, &packet);
                    sent += 1;
                }
                sent
            });
            let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..5 {
                    let program = Program::verdict(NEXT).unwrap();
                    let _other = way.attach(&lab, Direction::Ingress, &program);
                    only(&check(&mut lab), &Deviation::Order, is_repaired);
                }
            }));
            done.store(true, Ordering::Relaxed);
            rounds.unwrap();
            sender.join().unwrap()
        });
        assert_eq!(
            lab.refused(0, KernelReason::WallNotWorker) - before,
            sent,
            "{way:?}"
        );
        tap.set_nonblocking(true).unwrap();
        let mut bytes = [0; 64];
        while let Ok(len) = (&tap).read(&mut bytes) {
            // Nothing of what the app sent; neighbour discovery may come by.
            assert!(len < 20 || bytes[9] != crate::wall::TCP, "{way:?}");
        }
    }
}

#[test]
fn a_filter_and_its_qdisc_that_were_taken_off_are_put_back() {
    let mut lab = Way::Clsact.lab();
    lab.enrol(0);
    assert_eq!(check(&mut lab), []);
    for removal in [
        "filter del dev veth0 ingress",
        "filter del dev veth0 egress",
    ] {
        tc(&lab, removal);
        only(&check(&mut lab), &Deviation::Detached, is_repaired);
    }
    tc(&lab, "qdisc del dev veth0 clsact");
    let findings = check(&mut lab);
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert_eq!(check(&mut lab), []);
    assert_whole(&lab);
}

#[test]
fn a_filter_put_in_the_place_of_a_wall_is_replaced() {
    let mut lab = Way::Clsact.lab();
    lab.enrol(0);
    assert_eq!(check(&mut lab), []);
    let pin = lab.options.bpffs.join(format!("{}other", lab.prefix));
    Program::verdict(PASS).unwrap().pin(&pin).unwrap();
    let filter = "filter replace dev veth0 ingress pref 1 handle 0x4e4d bpf da object-pinned";
    tc(&lab, &format!("{filter} {}", pin.display()));
    std::fs::remove_file(&pin).unwrap();
    // It has another name, so it is no wall, and stays; ours goes before it.
    only(&check(&mut lab), &Deviation::Detached, is_repaired);
    assert_eq!(Way::Clsact.order(&lab, Direction::Ingress).len(), 2);
    assert_eq!(check(&mut lab), []);
    assert_whole(&lab);
}

/// Nothing comes out of the pod, not even what the wall would let pass.
fn assert_cut_off(lab: &Lab) {
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let called = lab.in_node(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.connect_timeout(&to.into(), Duration::from_secs(1))
    });
    assert!(called.is_err(), "the pod answers");
}

/// There is a limit to how many programs a hook has.
#[test]
fn a_pod_whose_wall_cannot_be_first_is_cut_off_until_it_can() {
    if !Way::all().contains(&Way::Tcx) {
        return;
    }
    let mut lab = Way::Tcx.lab();
    lab.enrol(0);
    assert_eq!(check(&mut lab), []);
    let attach = || Direction::Ingress.attach_tcx(&lab, &Program::verdict(NEXT).unwrap());
    let mut others: Vec<_> = std::iter::from_fn(|| attach().ok()).take(100).collect();
    assert!(others.len() < 100, "no limit");
    only(&check(&mut lab), &Deviation::Order, is_cut_off);
    assert_cut_off(&lab);
    only(&check(&mut lab), &Deviation::Order, is_cut_off);
    others.truncate(10);
    crate::lab::eventually("there is room", || {
        (Way::Tcx.order(&lab, Direction::Ingress).len() < 20).then_some(())
    });
    only(&check(&mut lab), &Deviation::Order, is_repaired);
    assert_eq!(check(&mut lab), []);
    // The addresses of a device that was down are as they were, IPv4's.
    assert_whole(&lab);
}

/// Filters of one priority are of one protocol.
#[test]
fn a_pod_whose_filter_cannot_be_put_back_is_cut_off_until_it_can() {
    let mut lab = Way::Clsact.lab();
    lab.enrol(0);
    assert_eq!(check(&mut lab), []);
    tc(&lab, "filter del dev veth0 ingress");
    let obstacle = "filter add dev veth0 ingress pref 1 protocol ip bpf bytecode '1,6 0 0 0,'";
    tc(&lab, obstacle);
    only(&check(&mut lab), &Deviation::Detached, is_cut_off);
    assert_cut_off(&lab);
    tc(&lab, "filter del dev veth0 ingress");
    only(&check(&mut lab), &Deviation::Detached, is_repaired);
    assert_whole(&lab);
}

#[test]
fn a_steering_put_after_ours_is_before_it_after_the_next_look() {
    let mut lab = Lab::new();
    assert_eq!(check(&mut lab), []);
    let ip = lab.pod().v4;
    let app = lab.app();
    let listener = app.listen(SocketAddr::new(ip, 8080)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let netns = File::open(netns_path(&lab.pod().netns)).unwrap();
    let map = Map::of_socket(listener.as_fd()).unwrap();
    let other = Program::steer(8080, &map, true).unwrap();
    let target = Target::Fd(netns.as_fd());
    let _link = other.attach(target, AttachType::SkLookup, 0).unwrap();
    only(&check(&mut lab), &Deviation::Order, is_repaired);
    let order = foreign::programs_at(target, AttachType::SkLookup).unwrap();
    assert_eq!(order.len(), 2);
    assert_eq!(order[0], other.id().unwrap());
    assert_eq!(check(&mut lab), []);
    let to = SocketAddr::new(ip, 8080);
    let _caller = lab.in_node(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let patience = Duration::from_secs(5);
        socket.connect_timeout(&to.into(), patience).unwrap();
        socket
    });
    accept(&lab.worker().plaintext_v4);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}
