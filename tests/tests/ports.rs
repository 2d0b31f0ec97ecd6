//! Tunnels to the ports of apps: what a network's rules by port mean with the mesh.

use std::io::ErrorKind;
use std::net::SocketAddr;

use mesh_lab::traffic::{self, Traffic};
use mesh_lab::{App, Lab, Plan, Pod, servers};

const CLIENT: &str = "shop/client";
const WEB: &str = "shop/web";
const OPEN: u16 = 7000;
const SHUT: u16 = 7001;
/// File of the manifest of namespace `shop`.
const NAMESPACE: &str = "namespace-shop";

/// Namespace `shop`, with where tunnels to its pods go.
fn namespace(port: &str) -> String {
    format!(
        "kind: Namespace\nmetadata:\n  name: shop\n  labels: \
         {{nodemesh.dev/enroll: \"true\", nodemesh.dev/tunnel-port: {port}}}\n"
    )
}

fn plan(port: &str) -> Plan {
    Plan::two_nodes().manifest(NAMESPACE, &namespace(port))
}

fn serve(pod: &Pod, port: u16) -> App {
    servers::echo(pod, port).unwrap()
}

fn targets(pod: &Pod, port: u16) -> Vec<SocketAddr> {
    let addresses = pod.addresses().into_iter();
    addresses.map(|ip| SocketAddr::new(ip, port)).collect()
}

/// What a NetworkPolicy that opens one port of one pod comes to, as a plugin enforces it on the
/// pod's node.
fn open_alone(lab: &Lab, pod: &Pod, port: u16) {
    let [v4, v6] = pod.addresses()[..] else {
        panic!("a pod of both families");
    };
    let rules = format!(
        "table inet rules {{ chain forward {{ type filter hook forward priority 0;\n\
         ct state established,related accept\n\
         ip daddr {v4} tcp dport {port} accept\nip6 daddr {v6} tcp dport {port} accept\n\
         ip6 daddr {v6} meta l4proto icmpv6 accept\n\
         tcp dport 15008 counter reject with tcp reset\n\
         ip daddr {v4} tcp dport 0-65535 reject with tcp reset\n\
         ip6 daddr {v6} tcp dport 0-65535 reject with tcp reset\n\
         ip daddr {v4} drop\nip6 daddr {v6} drop\n }}\n }}\n"
    );
    let path = lab.folder().join("policy.nft");
    std::fs::write(&path, rules).unwrap();
    let nft = lab
        .node(1)
        .netns
        .command("nft")
        .arg("-f")
        .arg(path)
        .status();
    assert!(nft.unwrap().success());
}

#[test]
fn a_network_that_opens_the_ports_of_apps_alone_is_enough_and_is_obeyed() {
    let mut lab = Lab::build(plan("original")).unwrap();
    open_alone(&lab, lab.pod(WEB), OPEN);
    let capture = lab.capture(lab.node(0)).unwrap();
    lab.start_mesh().unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _servers = [serve(web, OPEN), serve(web, SHUT)];
    for to in targets(web, OPEN) {
        let called = client.netns.run(|| traffic::call(to));
        called.unwrap_or_else(|e| panic!("{to}: {e}\n{}", lab.log_tails()));
    }
    for to in targets(web, SHUT) {
        let error = client.netns.run(|| traffic::call(to)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{to}: {error}");
    }
    lab.agent(0).daemon.wait_log("tunnel_connect").unwrap();
    let recording = capture.stop().unwrap();
    let (a, b) = (lab.node(0), lab.node(1));
    let streams = recording.streams();
    let streams = streams.between(|ip| a.owns(ip), |ip| b.owns(ip));
    let summary = streams.assert_all_tls().unwrap();
    let ports: Vec<_> = summary.ports.keys().copied().collect();
    assert_eq!(ports, [OPEN], "{summary:?}");
    let listed = lab
        .node(1)
        .netns
        .command("nft")
        .args(["list", "ruleset"])
        .output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    assert!(
        listed.contains("tcp dport 15008 counter packets 0 "),
        "{listed}"
    );
    lab.finish().unwrap();
}

#[test]
fn where_tunnels_go_is_changed_under_traffic() {
    let lab = Lab::with_mesh(plan("hbone")).unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _server = serve(web, OPEN);
    let to = targets(web, OPEN)[0];
    let opened = |to: SocketAddr| format!("peer_address={to} ");
    let (stream, calls) = (Traffic::stream(client, to), Traffic::calls(client, to));
    let hbone = SocketAddr::new(to.ip(), 15008);
    lab.agent(0).daemon.wait_log(&opened(hbone)).unwrap();
    lab.write_manifest(NAMESPACE, &namespace("original"))
        .unwrap();
    lab.agent(0).daemon.wait_log(&opened(to)).unwrap();
    calls.wait(50);
    lab.write_manifest(NAMESPACE, &namespace("hbone")).unwrap();
    calls.wait(50);
    stream.wait(50);
    calls.finish_unharmed("calls");
    stream.finish_unharmed("a stream");
    lab.finish().unwrap();
}
