//! UDP passes the walls where policy allows it, in both directions by one test.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use mesh_common::{EVENT_AUDITED, KernelReason};
use mesh_core::policy::kernel::KernelClass::{TcpOut, UdpIn, UdpOut};
use mesh_core::policy::kernel::KernelVerdict::{self, Allow, Deny};
use mesh_core::policy::kernel::{KernelClass, KernelPolicy};

use crate::agreement::Wall;
use crate::frame::{self, IPV4, IPV6, VLAN};
use crate::injection::Injector;
use crate::lab::{Lab, NODE_V4, NODE_V6, eventually};
use crate::policy::policy;
use crate::wall::{NODE, POD};

const UDP: u8 = 17;

/// Both of the node's addresses, as blocks.
const NODE_BLOCKS: [&str; 2] = ["::ffff:10.88.0.1/128", "fd88::1/128"];

/// A socket outside and one inside, on those ports, for each family.
fn pairs(lab: &Lab, outside: u16, inside: u16) -> Vec<(UdpSocket, UdpSocket)> {
    let bind = |ip: IpAddr, port| {
        let socket = UdpSocket::bind((ip, port)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    };
    [(NODE_V4, lab.pod().v4), (NODE_V6, lab.pod().v6)]
        .into_iter()
        .map(|(node, pod)| {
            (
                lab.in_node(|| bind(node.parse().unwrap(), outside)),
                lab.in_pod(|| bind(pod, inside)),
            )
        })
        .collect()
}

/// Sends that many bytes, and says whether they arrive; the other outcome must be counted.
fn passes(lab: &Lab, from: &UdpSocket, to: &UdpSocket, len: usize) -> bool {
    let before = lab.refused(0, KernelReason::WallUdp);
    let sent = vec![7; len];
    from.send_to(&sent, to.local_addr().unwrap()).unwrap();
    to.set_nonblocking(true).unwrap();
    let mut buffer = [0; 9000];
    let arrived = eventually("it arrives or is counted", || {
        if let Ok((n, _)) = to.recv_from(&mut buffer) {
            assert_eq!(buffer[..n], sent);
            return Some(true);
        }
        (lab.refused(0, KernelReason::WallUdp) > before).then_some(false)
    });
    if !arrived {
        assert_eq!(
            to.recv(&mut buffer).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
    }
    arrived
}

/// A policy with these verdicts for the node.
fn both_blocks(rules: &[(KernelClass, u16, KernelVerdict)]) -> KernelPolicy {
    let rules: Vec<_> = NODE_BLOCKS
        .iter()
        .flat_map(|&block| rules.iter().map(move |&(c, p, v)| (block, c, p, v)))
        .collect();
    policy(&rules)
}

#[test]
fn without_a_policy_no_udp_passes() {
    let lab = Lab::new();
    for (outside, inside) in pairs(&lab, 0, 0) {
        assert!(!passes(&lab, &inside, &outside, 8));
        assert!(!passes(&lab, &outside, &inside, 8));
    }
    assert_eq!(lab.refused(0, KernelReason::WallUdp), 4);
    // Inside the pod nobody asks.
    for ip in ["127.0.0.1", "::1", "10.88.0.2", "fd88::2"] {
        let socket = lab.in_pod(|| UdpSocket::bind((ip, 0)).unwrap());
        assert!(passes(&lab, &socket, &socket, 8), "{ip}");
    }
}

#[test]
fn questions_to_an_allowed_port_and_their_answers_pass_and_nothing_else() {
    let mut lab = Lab::new();
    lab.set_policy(0, &both_blocks(&[(UdpOut, 53, Allow)]), false);
    for (resolver, app) in pairs(&lab, 53, 0) {
        assert!(passes(&lab, &app, &resolver, 40));
        assert!(passes(&lab, &resolver, &app, 200));
    }
    for (other, app) in pairs(&lab, 5353, 0) {
        assert!(!passes(&lab, &app, &other, 40));
        assert!(!passes(&lab, &other, &app, 40));
    }
}

#[test]
fn callers_of_an_allowed_port_of_the_pod_and_its_answers_pass_and_nothing_else() {
    let mut lab = Lab::new();
    lab.set_policy(0, &both_blocks(&[(UdpIn, 514, Allow)]), false);
    for (client, app) in pairs(&lab, 0, 514) {
        assert!(passes(&lab, &client, &app, 40));
        assert!(passes(&lab, &app, &client, 40));
    }
    for (client, app) in pairs(&lab, 514, 515) {
        assert!(!passes(&lab, &client, &app, 40));
        assert!(!passes(&lab, &app, &client, 40));
    }
}

#[test]
fn a_ports_own_verdict_comes_before_that_for_all_ports() {
    let mut lab = Lab::new();
    let rules = [(UdpOut, 0, Allow), (UdpOut, 53, Deny), (TcpOut, 0, Deny)];
    lab.set_policy(0, &both_blocks(&rules), false);
    for (other, app) in pairs(&lab, 5353, 0) {
        assert!(passes(&lab, &app, &other, 40));
        assert!(passes(&lab, &other, &app, 40));
    }
    for (resolver, app) in pairs(&lab, 53, 0) {
        assert!(!passes(&lab, &app, &resolver, 40));
        assert!(!passes(&lab, &resolver, &app, 40));
    }
}

/// Later fragments have no ports.
#[test]
fn what_is_fragmented_passes_as_a_whole_or_not_at_all() {
    let mut lab = Lab::new();
    lab.set_policy(0, &both_blocks(&[(UdpOut, 53, Allow)]), false);
    for (resolver, app) in pairs(&lab, 53, 0) {
        assert!(passes(&lab, &app, &resolver, 6000));
        assert!(passes(&lab, &resolver, &app, 6000));
    }
    for (other, app) in pairs(&lab, 5353, 0) {
        assert!(!passes(&lab, &app, &other, 6000));
        assert!(!passes(&lab, &other, &app, 6000));
    }
    // Where nothing is allowed every fragment is dropped: five of 6,000 bytes. Towards the pod
    // the sender's kernel gives up at the first.
    lab.set_policy(0, &KernelPolicy::default(), false);
    for (other, app) in pairs(&lab, 53, 0) {
        let before = lab.refused(0, KernelReason::WallUdp);
        app.send_to(&[7; 6000], other.local_addr().unwrap())
            .unwrap();
        eventually("every fragment is counted", || {
            (lab.refused(0, KernelReason::WallUdp) == before + 5).then_some(())
        });
        assert!(!passes(&lab, &other, &app, 6000));
    }
}

#[test]
fn frames_made_by_hand_are_judged_like_all() {
    let mut lab = Lab::new();
    lab.set_policy(0, &both_blocks(&[(UdpOut, 53, Allow)]), false);
    let (pod, node) = ("fd88::2".parse().unwrap(), NODE_V6.parse().unwrap());
    let refused = Some(KernelReason::WallUdp);
    for bypass in [false, true] {
        let app = Injector::new(&lab, bypass);
        for (to, outcome) in [(53, None), (54, refused)] {
            let datagram = frame::udp(4000, to, b"by hand");
            let v4 = frame::ipv4(POD, NODE, UDP, 0, &datagram);
            let v6 = frame::ipv6(pod, node, UDP, &datagram);
            let hidden = frame::ipv6(pod, node, 60, &frame::extension(UDP, &datagram));
            assert_eq!(app.send(IPV4, &frame::ethernet(IPV4, &v4)), outcome);
            assert_eq!(app.send(IPV6, &frame::ethernet(IPV4, &v4)), outcome);
            assert_eq!(app.send(IPV6, &frame::ethernet(IPV6, &v6)), outcome);
            assert_eq!(app.send(IPV6, &frame::ethernet(IPV6, &hidden)), outcome);
            let first = frame::ipv4(POD, NODE, UDP, 0x2000, &datagram);
            assert_eq!(app.send(IPV4, &frame::ethernet(IPV4, &first)), outcome);
        }
        // Not even the ports are there.
        let short = frame::ipv4(POD, NODE, UDP, 0, &[0, 53]);
        let unparsable = Some(KernelReason::WallUnparsable);
        assert_eq!(app.send(IPV4, &frame::ethernet(IPV4, &short)), unparsable);
        // A later fragment, to one that has some UDP allowed and to one that hasn't.
        let later = frame::ipv4(POD, NODE, UDP, 0x0003, &[7; 16]);
        assert_eq!(app.send(IPV4, &frame::ethernet(IPV4, &later)), None);
        let stranger = std::net::Ipv4Addr::new(198, 51, 100, 7);
        let later = frame::ipv4(POD, stranger, UDP, 0x0003, &[7; 16]);
        assert_eq!(app.send(IPV4, &frame::ethernet(IPV4, &later)), refused);
    }
}

/// What a kernel would hand to the pod as UDP, by whatever detour.
#[test]
fn what_comes_to_the_pod_is_judged_as_the_pods_kernel_would_read_it() {
    let mut lab = Lab::new();
    lab.set_policy(0, &both_blocks(&[(UdpOut, 53, Allow)]), false);
    let wall = Wall::of(&lab, "wall_in");
    let (pod, node) = ("fd88::2".parse().unwrap(), NODE_V6.parse().unwrap());
    let v4 = |protocol, fragment, payload: &[u8]| {
        frame::ethernet(IPV4, &frame::ipv4(NODE, POD, protocol, fragment, payload))
    };
    let v6 = |next, payload: &[u8]| frame::ethernet(IPV6, &frame::ipv6(node, pod, next, payload));
    for (from, allowed) in [(53, true), (54, false)] {
        let datagram = frame::udp(from, 4000, b"by hand");
        assert_eq!(wall.passes(&v4(UDP, 0, &datagram)), allowed);
        assert_eq!(wall.passes(&v4(UDP, 0x2000, &datagram)), allowed);
        assert_eq!(wall.passes(&v6(UDP, &datagram)), allowed);
        let hidden = frame::extension(60, &frame::extension(UDP, &datagram));
        assert_eq!(wall.passes(&v6(0, &hidden)), allowed);
        // More fragments, none (an "atomic" one), and the last one, which has no ports.
        for (offset, passes) in [(1, allowed), (0, allowed), (8, true)] {
            let mut fragment = vec![UDP, 0, 0, offset, 0, 0, 0, 9];
            fragment.extend(&datagram);
            assert_eq!(wall.passes(&v6(44, &fragment)), passes, "{from} {offset}");
        }
        // The kernel takes VLAN 0 for no tag at all.
        let mut tagged = vec![0, 0];
        tagged.extend(&v4(UDP, 0, &datagram)[12..]);
        assert!(!wall.passes(&frame::ethernet(VLAN, &tagged)));
        assert!(!wall.passes(&frame::ethernet(0x88a8, &tagged)));
    }
    assert!(!wall.passes(&v4(UDP, 0, &[0, 53])));
    // SCTP, UDP-Lite, IP in IP, GRE.
    for protocol in [132, 136, 4, 47] {
        let datagram = frame::udp(53, 4000, b"by hand");
        assert!(!wall.passes(&v4(protocol, 0, &datagram)), "{protocol}");
        assert!(!wall.passes(&v6(protocol, &datagram)), "{protocol}");
    }
    assert!(wall.passes(&v4(1, 0, &frame::icmp_echo(8))));
    assert!(wall.passes(&v6(58, &frame::icmp_echo(128))));
    assert!(wall.passes(&v4(6, 0, &frame::tcp(80, frame::SYN, &[], &[]))));
    assert!(wall.passes(&frame::ethernet(frame::ARP, &[0; 28])));
}

#[test]
fn audit_counts_and_lets_through() {
    let mut lab = Lab::new();
    lab.set_policy(0, &both_blocks(&[(UdpOut, 53, Allow)]), true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut events = lab.capture.as_ref().unwrap().events().unwrap();
        let mut counted = 0;
        for (other, app) in pairs(&lab, 5353, 0) {
            for (from, to) in [(&app, &other), (&other, &app)] {
                assert!(passes(&lab, from, to, 40));
                counted += 1;
                assert_eq!(lab.audited(0, KernelReason::WallUdp), counted);
                let event = events.next().await.unwrap();
                assert_eq!(event.reason, KernelReason::WallUdp as u32);
                assert_eq!((event.flags, event.protocol), (EVENT_AUDITED, UDP));
                let ports = [from, to].map(|s| s.local_addr().unwrap().port());
                assert_eq!([event.source_port, event.destination_port], ports);
            }
        }
        for (resolver, app) in pairs(&lab, 53, 0) {
            assert!(passes(&lab, &app, &resolver, 40));
        }
        assert_eq!(lab.audited(0, KernelReason::WallUdp), counted);
    });
    assert_eq!(lab.refused(0, KernelReason::WallUdp), 0);
    // Audit is about policy: what else the walls drop they drop.
    crate::wall::send_raw_syn(&lab, SocketAddr::new(NODE_V4.parse().unwrap(), 80));
    assert_eq!(lab.refused(0, KernelReason::WallNotWorker), 1);
}

#[test]
fn a_swapped_policy_holds_for_the_next_datagram() {
    let mut lab = Lab::new();
    let allowed = both_blocks(&[(UdpOut, 53, Allow)]);
    let sockets = pairs(&lab, 53, 0);
    for _ in 0..10 {
        lab.set_policy(0, &allowed, false);
        for (resolver, app) in &sockets {
            assert!(passes(&lab, app, resolver, 8));
        }
        lab.set_policy(0, &KernelPolicy::default(), false);
        for (resolver, app) in &sockets {
            assert!(!passes(&lab, app, resolver, 8));
            assert!(!passes(&lab, resolver, app, 8));
        }
    }
}
