//! TCP that policy denies is refused at `connect`.

use std::io;
use std::net::SocketAddr;

use mesh_common::{EVENT_AUDITED, KernelReason};
use mesh_core::policy::kernel::{KernelClass, KernelPolicy, KernelVerdict, MAX_PREFIXES};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Lab, in_netns};
use crate::names::{accept, address};

/// A policy of these verdicts; port 0 is every port.
pub(crate) fn policy(rules: &[(&str, KernelClass, u16, KernelVerdict)]) -> KernelPolicy {
    let mut policy = KernelPolicy::default();
    for &(block, class, port, verdict) in rules {
        let verdicts = policy.prefixes.entry(block.parse().unwrap()).or_default();
        verdicts.insert((class, port), verdict);
    }
    policy
}

pub(crate) fn deny(rules: &[(&str, u16)]) -> KernelPolicy {
    let deny = |&(block, port)| (block, KernelClass::TcpOut, port, KernelVerdict::Deny);
    policy(&rules.iter().map(deny).collect::<Vec<_>>())
}

pub(crate) fn dial_from(netns: &str, to: SocketAddr) -> io::Result<Socket> {
    in_netns(netns, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.connect(&to.into())?;
        Ok(socket)
    })
}

pub(crate) fn dial(lab: &Lab, to: &str) -> io::Result<Socket> {
    dial_from(&lab.pod().netns, address(to))
}

pub(crate) fn assert_eperm<T>(result: io::Result<T>, what: &str) {
    let errno = result.err().and_then(|e| e.raw_os_error());
    assert_eq!(errno, Some(libc::EPERM), "{what}");
}

/// Addresses and ports that [`denials`] denies.
pub(crate) const DENIED: [&str; 5] = [
    "198.51.100.7:443",
    "[::ffff:198.51.100.7]:443",
    "203.0.113.9:80",
    "[2001:db8::7]:443",
    "[2001:db8:1::1]:9",
];
/// Their neighbours that it doesn't.
const LEFT_TO_THE_WORKER: [&str; 6] = [
    "198.51.100.7:444",
    "198.51.100.8:443",
    "[::ffff:198.51.100.7]:80",
    "[2001:db8::7]:444",
    "[2001:db8::8]:443",
    "[2001:db8:2::1]:9",
];

pub(crate) fn denials() -> KernelPolicy {
    deny(&[
        ("::ffff:198.51.100.7/128", 443),
        ("::ffff:203.0.113.0/120", 0),
        ("2001:db8::7/128", 443),
        ("2001:db8:1::/48", 0),
    ])
}

#[test]
fn a_denied_destination_is_eperm_and_its_neighbours_reach_the_worker() {
    let mut lab = Lab::new();
    lab.set_policy(0, &denials(), false);
    for to in DENIED {
        assert_eperm(dial(&lab, to), to);
    }
    assert_eq!(
        lab.refused(0, KernelReason::ConnectPolicy),
        u64::try_from(DENIED.len()).unwrap()
    );
    for to in LEFT_TO_THE_WORKER {
        let _app = dial(&lab, to).unwrap_or_else(|e| panic!("{to}: {e}"));
        let worker = lab.worker();
        let v4 = address(to).ip().to_canonical().is_ipv4();
        accept(if v4 {
            &worker.outbound_v4
        } else {
            &worker.outbound_v6
        });
    }
    assert_eq!(lab.capture.as_ref().unwrap().unfinished(0).unwrap(), (0, 0));
}

#[test]
fn nothing_of_a_denied_connect_is_left_whatever_the_socket_is() {
    let mut lab = Lab::new();
    lab.set_policy(0, &denials(), false);
    let to = address(DENIED[0]);
    let socket =
        |protocol| lab.in_pod(|| Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).unwrap());
    let non_blocking = socket(Protocol::TCP);
    non_blocking.set_nonblocking(true).unwrap();
    assert_eperm(non_blocking.connect(&to.into()), "non-blocking");
    // The same socket goes elsewhere afterwards, and nowhere denied after that.
    non_blocking.set_nonblocking(false).unwrap();
    let elsewhere = address(LEFT_TO_THE_WORKER[0]);
    non_blocking.connect(&elsewhere.into()).unwrap();
    accept(&lab.worker().outbound_v4);
    assert_eperm(socket(Protocol::MPTCP).connect(&to.into()), "MPTCP");
    let fast_open = socket(Protocol::TCP);
    let sent = fast_open.send_to_with_flags(b"x", &to.into(), libc::MSG_FASTOPEN);
    assert_eperm(sent, "TCP Fast Open");
    assert_eq!(lab.refused(0, KernelReason::ConnectPolicy), 3);
    assert_eq!(lab.capture.as_ref().unwrap().unfinished(0).unwrap(), (0, 0));
}

#[test]
fn what_is_local_stays_so_and_the_own_address_can_be_denied() {
    let mut lab = Lab::new();
    lab.set_policy(0, &deny(&[("::/0", 0)]), false);
    let listener = lab.in_pod(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    dial_from(&lab.pod().netns, listener.local_addr().unwrap()).unwrap();
    let own = SocketAddr::new(lab.pod().v4, 8080);
    assert_eperm(dial_from(&lab.pod().netns, own), "own address");
    // The worker's own dials are its own affair.
    let outside = lab.in_node(|| std::net::TcpListener::bind("10.88.0.1:0").unwrap());
    let worker = &lab.worker().process;
    worker.dial(outside.local_addr().unwrap()).unwrap();
}

#[test]
fn audit_and_no_policy_deny_nothing() {
    let mut lab = Lab::new();
    dial(&lab, DENIED[0]).unwrap();
    lab.set_policy(0, &denials(), true);
    dial(&lab, DENIED[0]).unwrap();
    lab.set_policy(0, &denials(), false);
    assert_eperm(dial(&lab, DENIED[0]), "denied");
    lab.capture().prepare_pod(0).unwrap();
    dial(&lab, DENIED[0]).unwrap();
    assert_eq!(lab.audited(0, KernelReason::ConnectPolicy), 0);
}

#[test]
fn two_pods_policies_do_not_mix() {
    let mut lab = Lab::new();
    lab.add_pod();
    lab.enrol(1);
    let (first, second) = (DENIED[0], DENIED[2]);
    lab.set_policy(0, &deny(&[("::ffff:198.51.100.7/128", 443)]), false);
    lab.set_policy(1, &deny(&[("::ffff:203.0.113.9/128", 80)]), false);
    let from = |pod: usize, to: &str| dial_from(&lab.pods[pod].netns, address(to));
    assert_eperm(from(0, first), "pod 0");
    assert_eperm(from(1, second), "pod 1");
    from(0, second).unwrap();
    from(1, first).unwrap();
    let node = lab.node_netns();
    let (cookie, ifindex) = (lab.pods[1].cookie, lab.pods[1].ifindex);
    in_netns(&node, || lab.capture().withdraw(cookie, 1, &[ifindex])).unwrap();
    assert_eperm(dial(&lab, first), "pod 0, alone");
}

/// As many blocks as a policy may have, each within the one before or beside it.
#[test]
fn the_longest_of_4096_blocks_decides() {
    let mut lab = Lab::new();
    let count = u16::try_from(MAX_PREFIXES).unwrap();
    let mut large = deny(&[("::ffff:10.99.0.0/112", 0)]);
    for i in 0..count - 1 {
        let [high, low] = i.to_be_bytes();
        let block = format!("::ffff:10.99.{high}.{low}/128").parse().unwrap();
        let port = 1000 + i;
        let verdict = if i % 2 == 0 {
            KernelVerdict::Deny
        } else {
            KernelVerdict::Allow
        };
        let verdicts = [((KernelClass::TcpOut, port), verdict)];
        large.prefixes.insert(block, verdicts.into());
    }
    assert_eq!(large.prefixes.len(), MAX_PREFIXES);
    lab.set_policy(0, &large, false);
    for i in [0, 1, 254, 255, 256, 2047, 3000, 4093, 4094] {
        let [high, low] = u16::to_be_bytes(i);
        let dial = |port: u16| dial(&lab, &format!("10.99.{high}.{low}:{port}"));
        if i % 2 == 0 {
            assert_eperm(dial(1000 + i), &format!("{i}"));
        } else {
            dial(1000 + i).unwrap();
        }
        // Its own block says nothing of this one, and the block around it doesn't count.
        dial(999 + i).unwrap();
    }
    assert_eperm(
        dial(&lab, "10.99.15.255:7"),
        "outside of every single address",
    );
}

#[test]
fn events_of_denials_name_the_destination() {
    let mut lab = Lab::new();
    lab.set_policy(0, &denials(), false);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut events = lab.capture.as_ref().unwrap().events().unwrap();
        dial(&lab, DENIED[0]).unwrap_err();
        let event = events.next().await.unwrap();
        assert_eq!(event.reason, KernelReason::ConnectPolicy as u32);
        assert_eq!(event.flags & EVENT_AUDITED, 0);
        let to = mesh_common::mapped_v4([198, 51, 100, 7]);
        assert_eq!((event.destination, event.destination_port), (to, 443));
        assert_eq!((event.slot, event.protocol), (0, 6));
    });
}
