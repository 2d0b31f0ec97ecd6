//! The programs and `KernelPolicy` agree, for random policies and probes.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use mesh_core::policy::kernel::{KernelClass, KernelPolicy, KernelVerdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use socket2::{Domain, Socket, Type};

use crate::frame::{self, IPV4, IPV6};
use crate::lab::{Lab, in_netns};
use crate::names::accept;
use crate::{device, program};

const UDP: u8 = 17;
/// Few, so that policies and probes meet.
const PORTS: [u16; 5] = [0, 1, 53, 8080, u16::MAX];
const ADDRESSES: [&str; 8] = [
    "198.51.100.7",
    "198.51.100.8",
    "198.51.101.7",
    "203.0.113.255",
    "2001:db8::7",
    "2001:db8::8",
    "2001:db8:1::",
    "ff02::fb",
];
const LENGTHS: [u8; 12] = [0, 1, 8, 32, 47, 64, 95, 96, 112, 120, 127, 128];

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn remote() -> impl Strategy<Value = IpAddr> {
    select(&ADDRESSES[..]).prop_map(|text| text.parse().unwrap())
}

fn policies() -> impl Strategy<Value = KernelPolicy> {
    let class = select(vec![
        KernelClass::TcpOut,
        KernelClass::UdpOut,
        KernelClass::UdpIn,
    ]);
    let verdict = select(vec![KernelVerdict::Allow, KernelVerdict::Deny]);
    let verdicts = prop::collection::btree_map((class, select(&PORTS[..])), verdict, 0..6);
    let block = (remote(), select(&LENGTHS[..]))
        .prop_map(|(address, len)| ipnet::Ipv6Net::new(mapped(address), len).unwrap().trunc());
    prop::collection::btree_map(block, verdicts, 0..12).prop_map(|prefixes| KernelPolicy {
        prefixes,
        ..KernelPolicy::default()
    })
}

fn datagram(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let udp = frame::udp(from.port(), to.port(), b"probe");
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame::ethernet(IPV4, &frame::ipv4(from, to, UDP, 0, &udp))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame::ethernet(IPV6, &frame::ipv6(from, to, UDP, &udp))
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// A wall of the first pod, to be tried out with frames.
pub(crate) struct Wall {
    program: OwnedFd,
    node: String,
    ifindex: u32,
}

impl Wall {
    pub(crate) fn of(lab: &Lab, name: &str) -> Self {
        Self {
            program: device::program_of(lab, name),
            node: lab.node_netns(),
            ifindex: lab.pod().ifindex,
        }
    }

    /// Whether a frame passes.
    pub(crate) fn passes(&self, frame: &[u8]) -> bool {
        let run = || program::run(self.program.as_fd(), self.ifindex, frame, 1);
        match in_netns(&self.node, run) {
            // TC_ACT_UNSPEC and TC_ACT_SHOT.
            (-1, _) => true,
            (2, _) => false,
            (other, _) => panic!("verdict {other}"),
        }
    }
}

#[test]
fn udp_passes_where_the_policy_says_so() {
    let lab = Lab::new();
    let (out, into) = (Wall::of(&lab, "wall"), Wall::of(&lab, "wall_in"));
    let (v4, v6) = (lab.pod().v4, lab.pod().v6);
    let lab = RefCell::new(lab);
    let probe = (remote(), select(&PORTS[..]), select(&PORTS[..]));
    let cases = (policies(), vec(probe, 1..40), any::<bool>());
    TestRunner::new(Config::with_cases(200))
        .run(&cases, |(policy, probes, audit)| {
            lab.borrow_mut().set_policy(0, &policy, audit);
            for (remote, remote_port, local_port) in probes {
                let pod = if remote.is_ipv4() { v4 } else { v6 };
                let local = SocketAddr::new(pod, local_port);
                let outside = SocketAddr::new(remote, remote_port);
                let passes = audit || policy.udp_passes(remote, remote_port, local_port);
                for (wall, frame) in [
                    (&out, datagram(local, outside)),
                    (&into, datagram(outside, local)),
                ] {
                    prop_assert_eq!(wall.passes(&frame), passes, "{} {}", local, outside);
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn tcp_is_refused_where_the_policy_denies_it() {
    let lab = RefCell::new(Lab::new());
    let probe = (remote(), select(&PORTS[1..]));
    let cases = (policies(), vec(probe, 1..8), any::<bool>());
    TestRunner::new(Config::with_cases(100))
        .run(&cases, |(policy, probes, audit)| {
            lab.borrow_mut().set_policy(0, &policy, audit);
            let lab = lab.borrow();
            for (remote, port) in probes {
                let to = SocketAddr::new(remote, port);
                let denied =
                    policy.look_up(KernelClass::TcpOut, remote, port) == Some(KernelVerdict::Deny);
                let socket = lab
                    .in_pod(|| Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap());
                let errno = socket
                    .connect(&to.into())
                    .err()
                    .and_then(|e| e.raw_os_error());
                let expected = (denied && !audit).then_some(libc::EPERM);
                prop_assert_eq!(errno, expected, "{}", to);
                if errno.is_none() {
                    let worker = lab.worker();
                    accept(if to.is_ipv4() {
                        &worker.outbound_v4
                    } else {
                        &worker.outbound_v6
                    });
                }
            }
            Ok(())
        })
        .unwrap();
}
