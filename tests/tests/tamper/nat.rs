//! nft rules of the pod that send elsewhere what its app or its worker sends.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use mesh_lab::{Lab, Pod, call, wait};

use crate::{CLIENT, FREE, PORT, WEB, plan, serve, target};

fn load(pod: &Pod, rules: &str) {
    let rules = pod.write("rules.nft", rules).unwrap();
    let nft = pod.command("nft").root().arg("-f").arg(rules);
    nft.output().unwrap().ok().unwrap();
}

fn flush(pod: &Pod) {
    crate::as_root(pod, "nft flush ruleset").unwrap();
}

fn refused(lab: &Lab, pod: &Pod, reason: &str) -> u64 {
    let (agent, host) = (lab.agent(pod.node()), lab.node(pod.node()));
    agent.refused(host, pod, reason).unwrap()
}

/// Tricks in the words of nft: what they do to TCP that an app sends, or that its worker does.
const TRICKS: [(&str, &str); 4] = [
    // The loopback leg, app to worker, is led out of the pod.
    (
        "dnat of the loopback leg",
        "table ip t { chain o { type nat hook output priority -100; \
         ip daddr 127.0.0.1 tcp dport 15001 dnat to OUTSIDE\n }\n \
         chain p { type nat hook postrouting priority 100; ip daddr OUTSIDE_IP masquerade\n }\n }\n",
    ),
    // The worker's tunnels are led elsewhere.
    (
        "dnat of the tunnels",
        "table ip t { chain o { type nat hook output priority -100; \
         tcp dport 15008 dnat to OUTSIDE\n }\n }\n",
    ),
    // And under another source.
    (
        "snat of the tunnels",
        "table ip t { chain p { type nat hook postrouting priority 100; \
         tcp dport 15008 snat to FOREIGN\n }\n }\n",
    ),
    // Ports rewritten without connection tracking.
    (
        "rewriting without tracking",
        "table ip t { chain o { type filter hook output priority -300; \
         tcp dport 15008 notrack tcp dport set 9000 ip daddr set OUTSIDE_IP\n }\n }\n",
    ),
];

#[test]
fn what_is_redirected_leaves_the_pod_neither_in_clear_nor_elsewhere() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (client, free, web) = (lab.pod(CLIENT), lab.pod(FREE), lab.pod(WEB));
    let _server = serve(web, PORT);
    let to = target(web);
    let elsewhere = SocketAddr::new(lab.outside().v4().into(), 9000);
    let listener = lab
        .outside()
        .netns
        .run(|| TcpListener::bind(elsewhere).unwrap());
    listener.set_nonblocking(true).unwrap();
    let fill = |rules: &str| {
        rules
            .replace("OUTSIDE_IP", &lab.outside().v4().to_string())
            .replace("OUTSIDE", &elsewhere.to_string())
            .replace("FOREIGN", &lab.pod(crate::NEIGHBOUR).v4().to_string())
    };
    // Without a mesh it works: the app is led elsewhere.
    load(
        free,
        &fill(
            "table ip t { chain o { type nat hook output priority -100; \
             tcp dport 7000 dnat to OUTSIDE\n }\n }\n",
        ),
    );
    let arrives = |from: &Pod| {
        from.netns.run(|| {
            let socket = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Inet,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_NONBLOCK,
                None,
            )
            .unwrap();
            let SocketAddr::V4(to) = to else {
                panic!("IPv4")
            };
            let to = nix::sys::socket::SockaddrIn::from(to);
            let _under_way =
                nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()), &to);
            wait::until_true("a call at the other place", wait::PATIENCE / 5, || {
                Ok(listener.accept().is_ok())
            })
            .is_ok()
        })
    };
    assert!(arrives(free), "a pod without a mesh is led elsewhere");

    // Else the kernel itself lets nothing of 127.0.0.0/8 out.
    crate::as_root(client, "sysctl -w net.ipv4.conf.all.route_localnet=1").unwrap();
    let capture = lab.capture(lab.outside()).unwrap();
    let walled = |pod| {
        [
            "wall_tuple_mismatch",
            "wall_not_worker",
            "wall_source",
            "wall_bare_segment",
        ]
        .iter()
        .map(|reason| refused(&lab, pod, reason))
        .sum::<u64>()
    };
    for (name, rules) in TRICKS {
        load(client, &fill(rules));
        // A tunnel that stands is not led elsewhere by rules for new connections.
        crate::as_root(client, "ss -K state established dport = :15008").unwrap();
        let before = walled(client);
        // The worker may be resting after the dial that the trick before has spoilt.
        wait::until_true("the wall to count", 2 * wait::PATIENCE, || {
            assert!(!arrives(client), "{name}: it arrived elsewhere");
            Ok(walled(client) > before)
        })
        .unwrap_or_else(|e| panic!("{name}: {e:#}"));
        flush(client);
    }
    let recording = capture.stop().unwrap();
    let streams = recording.streams();
    let foreign = [client.v4(), lab.pod(crate::NEIGHBOUR).v4()];
    let seen = streams
        .directions()
        .filter(|d| foreign.iter().any(|a| d.from.ip() == *a));
    // The wall lets the kernel's answers to unknown segments pass, with nothing in them, and the pod
    // can lead those elsewhere too.
    let (bare, seen): (Vec<_>, Vec<_>) = seen.partition(|d| d.is_bare());
    println!("bare segments at the other place: {bare:?}");
    assert!(seen.is_empty(), "at the other place: {seen:?}");
    crate::wait_served(&lab, &client.netns, to);
}

/// What comes to the pod is led past its worker to an app's port.
#[test]
fn what_comes_in_is_not_led_past_the_worker() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (web, free) = (lab.pod(WEB), lab.pod("legacy/server"));
    let _servers = [serve(web, PORT), serve(free, PORT)];
    let rules = "table ip t { chain i { type nat hook prerouting priority -100; \
                 tcp dport 7001 redirect to :7000\n tcp dport 15008 redirect to :7000\n }\n }\n";
    for pod in [web, free] {
        load(pod, rules);
    }
    let outside = &lab.outside().netns;
    let at = |pod: &Pod, port| SocketAddr::new(pod.v4().into(), port);
    assert!(
        call::tcp(outside, at(free, 7001)).served(),
        "without a mesh"
    );
    for port in [PORT, 7001, 15008] {
        let called = call::tcp(outside, at(web, port));
        assert!(!called.served(), "port {port}: {called}");
    }
}
