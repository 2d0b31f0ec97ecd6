//! The mesh beside other people's eBPF: a socket load balancer at the root cgroup, a program that
//! steers inbound connections, programs at the pods' devices. Whether they were there before or
//! came after, connections work and are carried in mutual TLS, and theirs stay attached.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use mesh_lab::foreign::{self, AttachType, Link, Map, Program, Target, netns_cookie};
use mesh_lab::{Lab, Plan, Pod, wait};

const CLIENT: &str = "shop/client";
const WEB: &str = "shop/web";
const PORT: u16 = 80;
/// Lets a frame pass and asks no other program (`TC_ACT_OK`).
const PASS: i32 = 0;

const AT_DEVICE: [AttachType; 2] = [AttachType::TcxIngress, AttachType::TcxEgress];

/// Somebody else's programs on the way from the client to the web server.
struct Others {
    links: Vec<Link>,
    /// Gets what the steering steers.
    thief: TcpListener,
    passing: Program,
}

fn service(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.service(WEB)[0], 8080)
}

fn backend(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.pod(WEB).v4().into(), PORT)
}

fn attach(lab: &Lab) -> Others {
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let (service, backend) = (service(lab), backend(lab));
    let root = mesh_lab::cgroup::mount_point().unwrap();
    let cookie = netns_cookie(&client.netns).unwrap();
    let mut links = Vec::new();
    for (kind, from, to) in [
        (AttachType::Connect4, service, backend),
        (AttachType::Getpeername4, backend, service),
    ] {
        let program = Program::translate(kind, cookie, from, to).unwrap();
        links.push(program.attach_cgroup(&root, kind).unwrap());
    }
    let thief = web
        .netns
        .run(|| TcpListener::bind((web.v4(), 7777)).unwrap());
    thief.set_nonblocking(true).unwrap();
    let map = Map::of_socket(thief.as_fd()).unwrap();
    let steer = Program::steer(8081, &map, true).unwrap();
    let netns = Target::Fd(web.netns.as_fd());
    links.push(steer.attach(netns, AttachType::SkLookup, 0).unwrap());
    let passing = Program::verdict(PASS).unwrap();
    for pod in [client, web] {
        for kind in AT_DEVICE {
            links.push(on_device(lab, pod, |device| {
                passing.attach(device, kind, foreign::BEFORE).unwrap()
            }));
        }
    }
    Others {
        links,
        thief,
        passing,
    }
}

fn on_device<T: Send>(lab: &Lab, pod: &Pod, run: impl FnOnce(Target<'_>) -> T + Send) -> T {
    let node = &lab.node(pod.node()).netns;
    let ifindex = node.link_index(&pod.host_link).unwrap();
    node.run(|| run(Target::Ifindex(ifindex)))
}

/// Calls the service; returns whom the client takes its peer for.
fn call(lab: &Lab) -> SocketAddr {
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let server = web.command("mesh-lab-app").args(["serve", "80"]);
    let _server = server.spawn().unwrap();
    web.wait_listening(PORT).unwrap();
    let secret = "a secret that nobody on the way may read";
    let input = client.write("input", secret).unwrap();
    let wires = [0, 1].map(|node| lab.capture(lab.node(node)).unwrap());
    let dial = client
        .command("mesh-lab-app")
        .args(["dial", &service(lab).to_string()]);
    let said = dial.stdin(File::open(input).unwrap()).output().unwrap();
    let said = said
        .ok()
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    let mut packets = 0;
    for wire in wires {
        let recording = wire.stop().unwrap();
        assert!(!recording.contains(secret.as_bytes()), "in clear");
        packets += recording.streams().directions().count();
    }
    assert!(packets > 0, "nothing was on the wire");
    let lines: Vec<&str> = said.lines().collect();
    let [dialled, accepted, echoed] = lines[..] else {
        panic!("{said}")
    };
    assert_eq!(echoed, secret);
    let word = |line: &str, name: &str| -> SocketAddr {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name));
        word.unwrap_or_else(|| panic!("{line}")).parse().unwrap()
    };
    assert_eq!(word(accepted, "accept=").ip(), client.v4());
    word(dialled, "peer=")
}

/// Each still is where it was attached, at the devices behind the walls.
fn assert_untouched(lab: &Lab, others: &Others) {
    assert_eq!(others.links.len(), 7);
    for pod in [lab.pod(CLIENT), lab.pod(WEB)] {
        for kind in AT_DEVICE {
            let order = on_device(lab, pod, |device| {
                foreign::programs_at(device, kind).unwrap()
            });
            let theirs = others.passing.id().unwrap();
            assert_eq!(order.len(), 2, "{} {kind:?}: {order:?}", pod.key());
            assert_eq!(order[1], theirs, "{} {kind:?}", pod.key());
        }
    }
    assert!(others.thief.accept().is_err(), "the other's steering won");
}

/// How often something was found amiss and put right, on both nodes.
fn repaired(lab: &Lab) -> f64 {
    let found = [0, 1].map(|node| {
        let labels = ["kind=\"order\"", "outcome=\"repaired\""];
        let agent = lab.agent(node);
        agent.metric(lab.node(node), "nodemesh_tampering_total", &labels)
    });
    found.into_iter().map(Result::unwrap).sum()
}

/// The balancer has chosen before the mesh is asked.
#[test]
fn programs_that_were_there_before_the_mesh() {
    let mut lab = Lab::build(Plan::two_nodes()).unwrap();
    let others = attach(&lab);
    lab.start_mesh().unwrap();
    assert_eq!(call(&lab), backend(&lab));
    assert_untouched(&lab, &others);
    for node in 0..2 {
        let (agent, host) = lab.agent_mut(node);
        agent.restart(host).unwrap();
    }
    assert_eq!(call(&lab), backend(&lab));
    assert_untouched(&lab, &others);
    lab.finish().unwrap();
}

/// The mesh has chosen, and the balancer finds nothing to do.
#[test]
fn programs_that_came_after_the_mesh() {
    let lab = Lab::two_nodes().unwrap();
    let others = attach(&lab);
    // Two devices with two directions, and the steering.
    wait::until_true("the order to be put right", wait::PATIENCE, || {
        Ok(repaired(&lab) >= 5.0)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    assert_eq!(call(&lab), service(&lab));
    assert_untouched(&lab, &others);
    assert!(lab.log_tails().contains("kind=\"order\""));
    lab.finish().unwrap();
}
