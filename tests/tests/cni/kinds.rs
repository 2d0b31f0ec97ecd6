//! Pods that are not like others: static ones, those with users of their own, those with more than one
//! interface. What a runtime has to do with others: `runtime/kinds.rs`.

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use mesh_lab::cni::{Plugin, Sandbox};
use mesh_lab::manifest::{Stage, service_account};
use mesh_lab::{Lab, Netns, PodSpec, call, pins, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{NEW, PATIENCE_MS, SHORT_MS, WEB, lab, plan, serve, target};

/// What a node calls a static pod: the hash of its file.
const HASH: &str = "0123456789abcdef0123456789abcdef";
/// A network beside the pods' own.
const BESIDE: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

#[test]
fn a_static_pod_is_known_by_what_its_node_calls_it() {
    let lab = lab(plan());
    let (new, web) = (lab.pod(NEW), lab.pod(WEB));
    let _server = serve(web);
    // The API has a mirror of it, with a UID of its own.
    let mirror = format!(
        "{account}---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: new\n  namespace: shop\n  \
         uid: of-the-mirror\n  annotations:\n    kubernetes.io/config.hash: {HASH}\n    \
         kubernetes.io/config.mirror: {HASH}\n    kubernetes.io/config.source: file\n\
         spec:\n  nodeName: {node}\n  serviceAccountName: new\n  containers: [{{name: new, image: new}}]\n\
         status:\n  phase: Pending\n",
        account = service_account("shop", "new"),
        node = lab.node(0).name(),
    );
    lab.write_manifest("pod-shop-new", &mirror).unwrap();
    // By the mirror's UID no node asks.
    let hasty = Plugin::of(lab.agent(0), SHORT_MS);
    let mistaken = Sandbox::of(new, "c-0").uid("of-the-mirror");
    let said = hasty.run("ADD", &mistaken).unwrap();
    assert!(
        said.text().contains("another pod of that name"),
        "{}",
        said.text()
    );
    assert!(hasty.run("DEL", &mistaken).unwrap().well);

    let sandbox = Sandbox::of(new, "c-1").uid(HASH);
    let plugin = Plugin::of(lab.agent(0), PATIENCE_MS);
    plugin
        .add(&sandbox)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    assert!(call::tcp(&new.netns, target(web)).served());
    assert!(plugin.run("DEL", &sandbox).unwrap().well);
    lab.finish().unwrap();
}

fn served(lab: &Lab, from: &str, to: &str) {
    let (from, to) = (lab.pod(from), lab.pod(to));
    wait::until_true("a call to be served", wait::PATIENCE, || {
        let called = call::tcp(&from.netns, target(to));
        anyhow::ensure!(called.served(), "{called}");
        Ok(true)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

#[test]
fn a_pod_with_users_of_its_own_is_a_member_like_any() {
    const POD: &str = "shop/apart";
    let mut lab = lab(plan());
    lab.make_pod(PodSpec::new("shop", "apart").uid("uid-2").own_users())
        .unwrap();
    lab.announce_pod(lab.pod(POD), Stage::Pending).unwrap();
    let plugin = Plugin::of(lab.agent(0), PATIENCE_MS);
    let sandbox = Sandbox::of(lab.pod(POD), "c-2").uid("uid-2");
    plugin
        .add(&sandbox)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    let _servers = [WEB, POD].map(|key| serve(lab.pod(key)));
    served(&lab, POD, WEB);
    served(&lab, WEB, POD);
    let apart = lab.pod(POD);
    assert!(!call::tcp(&lab.outside().netns, target(apart)).served());
    // What is set in its namespace, and a worker more in it.
    let setting = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let reserved = apart.netns.run(|| fs::read_to_string(setting)).unwrap();
    assert!(reserved.contains("15001"), "{reserved}");
    let worker = lab.agent(0).worker_pid(apart).unwrap();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    lab.agent(0)
        .wait_new_worker(apart, worker, wait::PATIENCE)
        .unwrap();
    served(&lab, POD, WEB);
    served(&lab, WEB, POD);
    assert!(plugin.run("DEL", &sandbox).unwrap().well);
    let after = apart.netns.run(|| fs::read_to_string(setting)).unwrap();
    assert_eq!(after.trim(), "", "given back");
    lab.finish().unwrap();
}

/// Gives a pod another interface, as a network plugin beside the pods' own does: a veth to the node.
fn beside(lab: &Lab, key: &str) {
    let (node, pod) = (lab.node(0), lab.pod(key));
    let [near, far] = BESIDE;
    let name = pod.netns.name();
    let on_node = format!(
        "link add beside type veth peer name net1 netns {name}\n\
         addr add {near}/24 dev beside\nlink set beside up\n"
    );
    node.netns.ip(&on_node).unwrap();
    let in_pod = format!("addr add {far}/24 dev net1\nlink set net1 up\n");
    pod.netns.ip(&in_pod).unwrap();
}

/// Whether a datagram from the pod's other interface comes to the node.
fn comes_through(pod: &Netns, node: &Netns) -> bool {
    let [near, far] = BESIDE;
    let socket = |netns: &Netns, address| netns.run(|| UdpSocket::bind((address, 0))).unwrap();
    let (sender, receiver) = (socket(pod, far), socket(node, near));
    receiver
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    sender
        .send_to(b"beside", receiver.local_addr().unwrap())
        .unwrap();
    match receiver.recv(&mut [0; 16]) {
        Ok(_) => true,
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn an_interface_more_has_a_wall_or_the_pod_does_not_start() {
    let mut lab = lab(plan());
    lab.make_pod(PodSpec::new("shop", "bare").uid("uid-3"))
        .unwrap();
    beside(&lab, NEW);
    let (pod, node) = (&lab.pod(NEW).netns, &lab.node(0).netns);
    // Its neighbour has to be found first.
    wait::until_true("a datagram before it is a member", wait::PATIENCE, || {
        Ok(comes_through(pod, node))
    })
    .unwrap();
    lab.announce_pod(lab.pod(NEW), Stage::Pending).unwrap();
    let sandbox = Sandbox::of(lab.pod(NEW), "c-1").uid("uid-1");
    let plugin = Plugin::of(lab.agent(0), PATIENCE_MS);
    plugin
        .add(&sandbox)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    assert_eq!(pins::entries(lab.agent(0), "WALLS"), 2, "one for each");
    assert!(!comes_through(pod, node), "past its wall");
    let _server = serve(lab.pod(WEB));
    served(&lab, NEW, WEB);
    assert!(plugin.run("DEL", &sandbox).unwrap().well);
    node.ip("link del beside\n").unwrap();

    // One that leads elsewhere than through the node.
    beside(&lab, "shop/bare");
    let elsewhere = lab.outside().netns.name();
    node.ip(&format!("link set beside netns {elsewhere}\n"))
        .unwrap();
    lab.announce_pod(lab.pod("shop/bare"), Stage::Pending)
        .unwrap();
    let sandbox = Sandbox::of(lab.pod("shop/bare"), "c-3").uid("uid-3");
    let said = Plugin::of(lab.agent(0), SHORT_MS)
        .run("ADD", &sandbox)
        .unwrap();
    assert_eq!(said.code(), 101, "{}", said.text());
    for word in ["shop/bare", "net1", "not in the node's namespace"] {
        assert!(said.text().contains(word), "{word}: {}", said.text());
    }
    assert!(plugin.run("DEL", &sandbox).unwrap().well);
    lab.finish().unwrap();
}
