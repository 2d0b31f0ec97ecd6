//! A pod that is cut off reaches nothing and is reached by nothing, and comes back whole.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use mesh_common::{KernelReason, POD_CUT_OFF, WALL_CUT_OFF, WallConfig};
use mesh_core::policy::kernel::KernelClass::{UdpIn, UdpOut};
use mesh_core::policy::kernel::KernelVerdict::Allow;

use crate::agreement::Wall;
use crate::frame::{self, ARP};
use crate::lab::{Lab, NODE_V4, NODE_V6, eventually, in_netns, ip};
use crate::names::{accept, address};
use crate::policy::{assert_eperm, dial, policy};

/// Cuts the first pod off, or takes it up again, as the supervisor does.
fn cut_off(lab: &mut Lab, cut: bool) {
    let node = lab.node_netns();
    let (ifindex, cookie, mut config) = (lab.pod().ifindex, lab.pod().cookie, lab.pod().config);
    let wall = WallConfig {
        worker_cgroup_id: config.worker_cgroup_id,
        slot: config.slot,
        flags: if cut { WALL_CUT_OFF } else { 0 },
        address_v4: config.address_v4,
        address_v6: config.address_v6,
    };
    config.flags |= if cut { POD_CUT_OFF } else { 0 };
    let capture = lab.capture();
    in_netns(&node, || capture.attach_wall(ifindex, wall)).unwrap();
    capture.enrol(cookie, config).unwrap();
}

fn refused(lab: &Lab) -> u64 {
    lab.refused(0, KernelReason::CutOff)
}

fn allow_udp(lab: &mut Lab) {
    let rules: Vec<_> = ["::ffff:10.88.0.1/128", "fd88::1/128"]
        .iter()
        .flat_map(|&block| [(block, UdpOut, 0, Allow), (block, UdpIn, 0, Allow)])
        .collect();
    lab.set_policy(0, &policy(&rules), false);
}

#[test]
fn every_connect_is_refused_the_workers_too() {
    let mut lab = Lab::new();
    cut_off(&mut lab, true);
    for to in [
        "198.51.100.7:443",
        "[2001:db8::7]:443",
        "[::ffff:198.51.100.7]:443",
        "127.0.0.1:80",
        "[::1]:80",
        "0.0.0.0:80",
    ] {
        let before = refused(&lab);
        assert_eperm(dial(&lab, to), to);
        // The kernel's own neighbour discovery is dropped and counted as well.
        assert!(refused(&lab) > before, "{to}");
    }
    let before = refused(&lab);
    assert_eperm(
        lab.worker().process.dial(address("10.88.0.1:15008")),
        "the worker",
    );
    assert!(refused(&lab) > before);

    cut_off(&mut lab, false);
    dial(&lab, "198.51.100.7:443").unwrap();
    accept(&lab.worker().outbound_v4);
}

#[test]
fn nothing_passes_the_walls_in_either_direction() {
    let mut lab = Lab::new();
    allow_udp(&mut lab);
    let bind = |ip: IpAddr| UdpSocket::bind((ip, 0)).unwrap();
    let pairs: Vec<(UdpSocket, UdpSocket)> = [(NODE_V4, lab.pod().v4), (NODE_V6, lab.pod().v6)]
        .map(|(node, pod)| {
            (
                lab.in_node(|| bind(node.parse().unwrap())),
                lab.in_pod(|| bind(pod)),
            )
        })
        .into();
    let arrives = |lab: &Lab, from: &UdpSocket, to: &UdpSocket| {
        let before = refused(lab);
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        to.set_nonblocking(true).unwrap();
        eventually("it arrives or is counted", || {
            let arrived = to.recv(&mut [0; 8]).is_ok();
            (arrived || refused(lab) > before).then_some(arrived)
        })
    };
    for (node, pod) in &pairs {
        assert!(arrives(&lab, pod, node) && arrives(&lab, node, pod));
    }
    cut_off(&mut lab, true);
    for (node, pod) in &pairs {
        assert!(!arrives(&lab, pod, node) && !arrives(&lab, node, pod));
    }
    // Not even address resolution.
    let request = frame::ethernet(ARP, &frame::arp(1, lab.pod().v4, NODE_V4));
    for wall in ["wall", "wall_in"] {
        assert!(!Wall::of(&lab, wall).passes(&request), "{wall}");
    }
    cut_off(&mut lab, false);
    for wall in ["wall", "wall_in"] {
        assert!(Wall::of(&lab, wall).passes(&request), "{wall}");
    }
    for (node, pod) in &pairs {
        assert!(arrives(&lab, pod, node) && arrives(&lab, node, pod));
    }
}

#[test]
fn what_was_open_before_is_silent() {
    let mut lab = Lab::new();
    let at = SocketAddr::new(NODE_V4.parse().unwrap(), 0);
    let listener = lab.in_node(|| std::net::TcpListener::bind(at).unwrap());
    let at = listener.local_addr().unwrap();
    let mut worker = TcpStream::from(lab.worker().process.dial(at).unwrap());
    let (mut peer, _) = listener.accept().unwrap();
    let mut send = |bytes: &[u8]| std::io::Write::write_all(&mut worker, bytes).unwrap();
    send(b"a");
    let mut byte = [0];
    std::io::Read::read_exact(&mut peer, &mut byte).unwrap();
    cut_off(&mut lab, true);
    let before = refused(&lab);
    send(b"b");
    eventually("the wall drops it", || {
        (refused(&lab) > before).then_some(())
    });
    peer.set_nonblocking(true).unwrap();
    assert!(std::io::Read::read(&mut peer, &mut byte).is_err());
    cut_off(&mut lab, false);
    peer.set_nonblocking(false).unwrap();
    std::io::Read::read_exact(&mut peer, &mut byte).unwrap();
    assert_eq!(&byte, b"b");
}

/// A device that has no end on the node, as macvlan and ipvlan have it.
#[test]
fn a_device_without_an_end_on_the_node_is_shut_from_inside() {
    let mut lab = Lab::new();
    let (node, pod) = (lab.node_netns(), lab.pod().netns.clone());
    ip(&format!("-n {node} link add up0 type veth peer name up1"));
    for setup in ["up0 up", "up1 up"] {
        ip(&format!("-n {node} link set {setup}"));
    }
    ip(&format!("-n {node} addr add 10.99.0.1/24 dev up1"));
    ip(&format!(
        "-n {node} link add link up0 name mv0 netns {pod} type macvlan mode bridge"
    ));
    ip(&format!("-n {pod} addr add 10.99.0.2/24 dev mv0"));
    ip(&format!("-n {pod} link set mv0 up"));
    let bind = |ip: &str| UdpSocket::bind((ip, 0)).unwrap();
    let outside = lab.in_node(|| bind("10.99.0.1"));
    let inside = lab.in_pod(|| bind("10.99.0.2"));
    let arrives = |lab: &Lab, from: &UdpSocket, to: &UdpSocket| {
        let before = refused(lab);
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        to.set_nonblocking(true).unwrap();
        eventually("it arrives or is counted", || {
            let arrived = to.recv(&mut [0; 8]).is_ok();
            (arrived || refused(lab) > before).then_some(arrived)
        })
    };
    assert!(arrives(&lab, &inside, &outside), "no wall stands there");
    let ifindex = lab.in_pod(|| nix::net::if_::if_nametoindex("mv0").unwrap());
    let slot = lab.pod().slot;
    for _ in 0..2 {
        let capture = lab.capture();
        in_netns(&pod, || capture.shut_device(slot, ifindex)).unwrap();
        assert!(!arrives(&lab, &inside, &outside) && !arrives(&lab, &outside, &inside));
    }
    let capture = lab.capture();
    in_netns(&pod, || capture.reopen_devices(slot, &[ifindex])).unwrap();
    assert!(arrives(&lab, &inside, &outside) && arrives(&lab, &outside, &inside));
    let links = format!(
        "nodemesh-{}/v{}/links",
        lab.prefix,
        mesh_common::ABI_VERSION
    );
    let left = fs::read_dir(lab.options.bpffs.join(links)).unwrap();
    let left = left.filter(|link| {
        let name = link.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("shut-")
    });
    assert_eq!(left.count(), 0);
    // The rest of the pod was not touched.
    let netns = fs::File::open(crate::lab::netns_path(&pod)).unwrap();
    lab.capture().steer(slot, netns.as_fd()).unwrap();
    dial(&lab, "198.51.100.7:443").unwrap();
}
