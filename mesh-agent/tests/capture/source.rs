//! A pod speaks under its own addresses only, whatever it makes its own kernel believe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use mesh_common::KernelReason;
use mesh_core::policy::kernel::KernelClass::UdpOut;
use mesh_core::policy::kernel::KernelVerdict::Allow;

use crate::frame::{self, ARP, IPV4, IPV6};
use crate::injection::Injector;
use crate::lab::{Lab, NODE_V4, NODE_V6, eventually, ip};
use crate::policy::policy;
use crate::wall::{NODE, POD};

const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Another pod's addresses, for all that the wall knows.
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 3);
const FOREIGN: Option<KernelReason> = Some(KernelReason::WallSource);

fn lab() -> Lab {
    let mut lab = Lab::new();
    let blocks = ["::ffff:10.88.0.1/128", "fd88::1/128", "ff02::/16"];
    let rules = blocks.map(|block| (block, UdpOut, 0, Allow));
    lab.set_policy(0, &policy(&rules), false);
    lab
}

fn pod_v6(lab: &Lab) -> Ipv6Addr {
    match lab.pod().v6 {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => panic!("IPv6"),
    }
}

#[test]
fn a_packet_under_another_address_is_dropped() {
    let lab = lab();
    let udp = frame::udp(5000, 53, b"x");
    let node_v6: Ipv6Addr = NODE_V6.parse().unwrap();
    let local = "fe80::2".parse().unwrap();
    for bypass in [false, true] {
        let app = Injector::new(&lab, bypass);
        let v4 = |source| {
            let packet = frame::ipv4(source, NODE, UDP, 0, &udp);
            app.send(IPV4, &frame::ethernet(IPV4, &packet))
        };
        assert_eq!(v4(POD), None);
        for source in [OTHER_V4, NODE, Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST] {
            assert_eq!(v4(source), FOREIGN, "{source}");
        }
        let v6 = |source| {
            let packet = frame::ipv6(source, node_v6, UDP, &udp);
            app.send(IPV6, &frame::ethernet(IPV6, &packet))
        };
        assert_eq!(v6(pod_v6(&lab)), None);
        // Good on its own link only.
        assert_eq!(v6(local), None);
        for source in [
            OTHER_V6,
            node_v6,
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::LOCALHOST,
        ] {
            assert_eq!(v6(source), FOREIGN, "{source}");
        }
        let echo = frame::icmp_echo(8);
        let ping = |source| {
            let packet = frame::ipv4(source, NODE, ICMP, 0, &echo);
            app.send(IPV4, &frame::ethernet(IPV4, &packet))
        };
        assert_eq!((ping(POD), ping(OTHER_V4)), (None, FOREIGN));
    }
}

#[test]
fn an_address_is_claimed_by_its_owner_only() {
    let lab = lab();
    let app = Injector::new(&lab, false);
    let arp = |operation, sender: Ipv4Addr| {
        let packet = frame::arp(operation, sender.into(), NODE_V4);
        app.send(ARP, &frame::ethernet(ARP, &packet))
    };
    for operation in [1, 2] {
        assert_eq!(arp(operation, POD), None);
        assert_eq!(arp(operation, OTHER_V4), FOREIGN);
    }
    assert_eq!(arp(1, Ipv4Addr::UNSPECIFIED), None, "a probe");
    let strange = frame::ethernet(ARP, &[0; 28]);
    assert_eq!(app.send(ARP, &strange), Some(KernelReason::WallProtocol));

    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let advertise = |source, address: Ipv6Addr| {
        let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        message.extend(address.octets());
        let packet = frame::ipv6(source, all_nodes, ICMPV6, &message);
        app.send(IPV6, &frame::ethernet(IPV6, &packet))
    };
    let own = pod_v6(&lab);
    let local = "fe80::2".parse().unwrap();
    for address in [own, local] {
        assert_eq!(advertise(own, address), None, "{address}");
    }
    for source in [own, local, OTHER_V6] {
        assert_eq!(advertise(source, OTHER_V6), FOREIGN, "{source}");
    }
    // Whether an address is free is asked without one.
    let mut solicit = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicit.extend(own.octets());
    let packet = frame::ipv6(Ipv6Addr::UNSPECIFIED, all_nodes, ICMPV6, &solicit);
    assert_eq!(app.send(IPV6, &frame::ethernet(IPV6, &packet)), None);
}

/// The same by the kernel's own means.
#[test]
fn an_address_that_the_pod_gave_itself_is_of_no_use_outside() {
    let lab = lab();
    let netns = &lab.pod().netns;
    ip(&format!("-n {netns} addr add {OTHER_V4}/24 dev eth0"));
    ip(&format!("-n {netns} addr add {OTHER_V6}/64 dev eth0 nodad"));
    for (node, source) in [
        (NODE_V4, IpAddr::from(OTHER_V4)),
        (NODE_V6, IpAddr::from(OTHER_V6)),
    ] {
        let bind = |ip: IpAddr| UdpSocket::bind((ip, 0)).unwrap();
        let server = lab.in_node(|| bind(node.parse().unwrap()));
        let client = lab.in_pod(|| bind(source));
        let before = lab.refused(0, KernelReason::WallSource);
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        eventually("the wall counts it", || {
            (lab.refused(0, KernelReason::WallSource) > before).then_some(())
        });
        server.set_nonblocking(true).unwrap();
        assert!(server.recv(&mut [0; 8]).is_err(), "from {source}");
    }
}
