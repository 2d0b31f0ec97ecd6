//! Devices that appear in a pod later, and pods that have none that can be walled.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_lab::call::{self, Called};
use mesh_lab::{Enrolment, Lab, Netns, Pod, PodSpec, removal, wait};

use crate::{
    CLIENT, FREE, NEIGHBOUR, PORT, WEB, as_root, found, nonce, plan, serve, target, wait_found,
    wait_served, wait_state, with_udp,
};

const UDP_PORT: u16 = 9;

/// Kernels don't all have these kinds of devices.
fn has_kind(lab: &Lab, kind: &str) -> bool {
    let host = &lab.node(0).netns;
    let made = host.ip(&format!(
        "link add link eth0 name probe type {kind}\nlink del probe\n"
    ));
    if made.is_err() {
        println!("this kernel has no {kind} devices");
    }
    made.is_ok()
}

/// Whether it could be handed to the kernel.
fn send(from: &Netns, source: Ipv4Addr, to: Ipv4Addr, text: &str) -> bool {
    let to = SocketAddr::new(to.into(), UDP_PORT);
    let socket = from.run(|| UdpSocket::bind((source, 0)));
    socket.is_ok_and(|socket| socket.send_to(text.as_bytes(), to).is_ok())
}

/// What a pod with `CAP_NET_ADMIN` can do where its user namespace is the node's: a device of its
/// own on a device of the node's, which it knows by the other end of its veth.
fn add_on_nodes_device(lab: &Lab, pod: &Pod, kind: &str, address: Ipv4Addr) {
    let index = lab.node(pod.node()).netns.link_index("eth0").unwrap();
    let add = format!("ip link add link if{index} link-netnsid 0 name mv0 type {kind}");
    as_root(pod, &add).unwrap();
    as_root(pod, &format!("ip addr add {address}/24 dev mv0")).unwrap();
    as_root(pod, "ip link set mv0 up").unwrap();
}

#[test]
fn a_device_on_a_device_of_the_node_cuts_the_pod_off_until_it_is_gone() {
    let lab = Lab::with_mesh(with_udp(plan())).unwrap();
    let (client, free) = (lab.pod(CLIENT), lab.pod(FREE));
    let _server = serve(lab.pod(WEB), PORT);
    let to = target(lab.pod(WEB));
    for (kind, number) in [("macvlan", 201), ("ipvlan", 211)] {
        if !has_kind(&lab, kind) {
            continue;
        }
        let outside = lab.outside().v4();
        let [a, b, c, _] = outside.octets();
        let (own, theirs) = (
            Ipv4Addr::new(a, b, c, number),
            Ipv4Addr::new(a, b, c, number + 1),
        );
        let capture = lab.capture(lab.outside()).unwrap();
        // Without a mesh the trick works.
        let in_clear = nonce();
        add_on_nodes_device(&lab, free, kind, theirs);
        wait::until_true("its device to work", wait::PATIENCE, || {
            Ok(send(&free.netns, theirs, outside, &in_clear))
        })
        .unwrap();

        // From before the device is there until the pod is cut off, without a pause.
        let (window, stop) = (nonce(), AtomicBool::new(false));
        let (took, sent) = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    if send(&client.netns, own, outside, &format!("{window} {sent}.")) {
                        sent += 1;
                    }
                }
                sent
            });
            let began = Instant::now();
            add_on_nodes_device(&lab, client, kind, own);
            wait_state(&lab, client, "cut-off");
            let took = began.elapsed();
            stop.store(true, Ordering::Relaxed);
            (took, sending.join().unwrap())
        });
        wait_found(&lab, client, "device", "cut_off", "mv0");
        assert_eq!(
            call::tcp(&client.netns, to),
            Called::NotConnected(libc::EPERM)
        );
        let after = nonce();
        send(&client.netns, own, outside, &after);
        send(&client.netns, client.v4(), outside, &after);
        wait::until_true("the other pod's datagram", wait::PATIENCE, || {
            Ok(lab.agent(0).refused(lab.node(0), client, "cut_off")? > 0)
        })
        .unwrap();
        let recording = capture.stop().unwrap();
        let has = |text: &str| recording.contains(text.as_bytes());
        assert!(has(&in_clear), "{kind}: without a mesh it leaves");
        assert!(!has(&after), "{kind}: in clear, by a pod that is cut off");
        let leaked = (0..sent).filter(|n| has(&format!("{window} {n}."))).count();
        println!(
            "{kind}: cut off {took:?} after `ip` began; {leaked} of {sent} datagrams left before"
        );

        for pod in [client, free] {
            as_root(pod, "ip link del mv0").unwrap();
        }
        wait_state(&lab, client, "enrolled");
        wait_served(&lab, &client.netns, to);
    }
    assert!(call::tcp(&lab.pod(NEIGHBOUR).netns, to).served());
    assert_eq!(found(&lab, lab.pod(NEIGHBOUR), "device", "cut_off"), 0.0);
}

/// How long after a veth to the node appeared its wall stands.
#[test]
fn a_second_way_to_the_node_has_a_wall_at_once() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let client = lab.pod(CLIENT);
    let host = &lab.node(0).netns;
    let agent = lab.agent(0);
    let links = fs::read_dir(format!("{}/nodemesh-{}", removal::BPFFS, agent.instance));
    let version = links.unwrap().flatten().next().unwrap().path();
    let mut windows = Vec::new();
    for round in 0..5 {
        let name = format!("x{round}");
        host.ip(&format!(
            "link add {name} type veth peer name {name} netns {}\n\
             addr add 10.99.{round}.1/24 dev {name}\nlink set {name} up\n",
            client.netns.name()
        ))
        .unwrap();
        let added_at = Instant::now();
        let index = host.link_index(&name).unwrap();
        let wall = version.join(format!("links/wall-{index}"));
        // Linux before 6.6 has no such link.
        let tcx = fs::read_dir(version.join("links")).unwrap().flatten();
        let tcx = tcx
            .into_iter()
            .any(|link| link.file_name().to_string_lossy().starts_with("wall-"));
        if tcx {
            wait::until_true("a wall", wait::PATIENCE, || Ok(wall.exists()))
                .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
            windows.push(added_at.elapsed());
        }
        wait_found(&lab, client, "device", "contained", &name);
        as_root(
            client,
            &format!("ip addr add 10.99.{round}.2/24 dev {name}"),
        )
        .unwrap();
        as_root(client, &format!("ip link set {name} up")).unwrap();
        let near = SocketAddr::new(IpAddr::from([10, 99, round, 1]), UDP_PORT);
        let server = host.run(|| UdpSocket::bind(near)).unwrap();
        server
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        send(
            &client.netns,
            Ipv4Addr::new(10, 99, round, 2),
            Ipv4Addr::new(10, 99, round, 1),
            "x",
        );
        assert!(server.recv(&mut [0; 8]).is_err(), "it came through {name}");
        host.ip(&format!("link del {name}\n")).unwrap();
        wait::until_true("the wall to be gone", wait::PATIENCE, || Ok(!wall.exists())).unwrap();
    }
    println!("walls stood {windows:?} after `ip` had ended");
    assert_eq!(
        lab.agent(0).pod_status(client).unwrap()["state"],
        "enrolled"
    );
}

#[test]
fn what_stands_on_the_pods_own_devices_is_told_of_and_harmless() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let client = lab.pod(CLIENT);
    let _server = serve(lab.pod(WEB), PORT);
    as_root(client, "ip link add br0 type bridge").unwrap();
    wait_found(&lab, client, "device", "contained", "br0");
    as_root(client, "ip tuntap add tap0 mode tap").unwrap();
    wait_found(&lab, client, "device", "contained", "tap0");
    as_root(client, "ip link add in0 type veth peer name in1").unwrap();
    wait_found(&lab, client, "device", "contained", "in1");
    assert!(call::tcp(&client.netns, target(lab.pod(WEB))).served());
    assert_eq!(
        lab.agent(0).pod_status(client).unwrap()["state"],
        "enrolled"
    );
}

/// A pod whose only device has no end on the node.
#[test]
fn a_pod_without_a_veth_is_cut_off_as_far_as_can_be() {
    for kind in ["macvlan", "ipvlan"] {
        let plan = plan().namespace("late").pod(PodSpec::new("late", "bare"));
        let lab = Lab::with_mesh(plan).unwrap();
        if !has_kind(&lab, kind) {
            continue;
        }
        let (bare, outside) = (lab.pod("late/bare"), lab.outside());
        let _server = serve(bare, PORT);
        lab.node(0)
            .netns
            .ip(&format!("link del {}\n", bare.host_link))
            .unwrap();
        let index = lab.node(0).netns.link_index("eth0").unwrap();
        let mut add = Command::new("ip");
        add.args([
            "-n",
            lab.node(0).netns.name(),
            "link",
            "add",
            "link",
            "eth0",
        ]);
        add.args(["name", "tmp0", "type", kind]);
        assert!(add.status().unwrap().success(), "on device {index}");
        let node = &lab.node(0).netns;
        node.ip(&format!(
            "link set tmp0 netns {} name eth0\n",
            bare.netns.name()
        ))
        .unwrap();
        // As its manifest has it, and on the fabric's network.
        let own = bare.v4();
        bare.netns
            .ip(&format!(
                "addr add {own}/32 dev eth0\nlink set eth0 up\n\
                 route add {}/32 dev eth0 src {own}\n",
                outside.v4()
            ))
            .unwrap();
        for address in bare.addresses().iter().filter(|a| a.is_ipv6()) {
            bare.netns
                .ip(&format!("addr add {address}/128 dev eth0 nodad\n"))
                .unwrap();
        }
        outside
            .netns
            .ip(&format!("route add {own}/32 dev eth0\n"))
            .unwrap();
        let server = outside
            .netns
            .run(|| UdpSocket::bind((outside.v4(), UDP_PORT)))
            .unwrap();
        server
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let arrives = || {
            send(&bare.netns, own, outside.v4(), "x");
            server.recv(&mut [0; 8]).is_ok()
        };
        let into = SocketAddr::new(own.into(), PORT);
        wait::until_true("its network to work", wait::PATIENCE, || Ok(arrives())).unwrap();
        assert!(call::tcp(&outside.netns, into).served(), "{kind}");

        lab.set_enrolment("late", Enrolment::Enforce).unwrap();
        let why = wait_state(&lab, bare, "cut-off");
        assert!(why.contains(kind), "{why}");
        wait_found(&lab, bare, "device", "cut_off", kind);
        assert!(!arrives(), "{kind}: UDP left");
        let out = SocketAddr::new(outside.v4().into(), PORT);
        assert_eq!(
            call::tcp(&bare.netns, out),
            Called::NotConnected(libc::EPERM)
        );
        assert!(!call::tcp(&outside.netns, into).served(), "{kind}");

        lab.set_enrolment("late", Enrolment::None).unwrap();
        wait_state(&lab, bare, "not-in-mesh");
        wait::until_true(
            "its network to work again",
            wait::PATIENCE,
            || Ok(arrives()),
        )
        .unwrap();
        assert!(call::tcp(&outside.netns, into).served(), "{kind}");
    }
}
