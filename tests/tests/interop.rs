//! A stock ztunnel beside Nodemesh's agents: control signs its certificates and tells it of
//! workloads and policies, and its pods and the mesh's talk to each other in mutual TLS.

use std::net::SocketAddr;

use mesh_lab::ztunnel::{Program, Ztunnel};
use mesh_lab::{Lab, Plan, Pod, PodSpec, call, manifest, wait};

const PORT: u16 = 7000;
/// Denied to `shop/client` by a policy that ztunnel is told.
const DENIED: u16 = 7001;
/// Allowed by a label, of which ztunnel knows nothing.
const LABELLED: u16 = 7002;

const POLICIES: &[(&str, &str)] = &[
    (
        "nodemesh-system/out",
        "{target: {mesh: true}, direction: Outbound, action: Allow, rules: [{}]}",
    ),
    (
        "nodemesh-system/in",
        "{target: {mesh: true}, direction: Inbound, action: Allow, rules: [{ports: [7000, 7001]}]}",
    ),
    (
        "stock/not-the-client",
        "{target: {labels: {app: server}}, direction: Inbound, action: Deny, \
         rules: [{peers: [{namespace: shop, serviceAccount: client}], ports: [7001]}]}",
    ),
    (
        "stock/labelled",
        "{direction: Inbound, action: Allow, \
         rules: [{peers: [{namespace: shop, labels: {app: client}}], ports: [7002]}]}",
    ),
];

fn plan() -> Plan {
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .enrolled("stock")
        .without_default_policy()
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "web"))
        .pod(PodSpec::new("stock", "client").node(1))
        .pod(PodSpec::new("stock", "server").node(1));
    let policies = POLICIES.iter().enumerate();
    policies.fold(plan, |plan, (n, (key, spec))| {
        plan.manifest(&format!("policy-{n}"), &manifest::authorization(key, spec))
    })
}

/// Whether a call is served; in mutual TLS if it is: the server's greeting is not on the wire.
fn served(lab: &Lab, from: &Pod, to: SocketAddr) -> bool {
    let wire = lab.capture(lab.node(0)).unwrap();
    let called = call::tcp(&from.netns, to);
    let recording = wire.stop().unwrap();
    assert!(!recording.contains(b"accept="), "{to}: in clear");
    if called.served() {
        assert!(
            recording.streams().directions().count() > 0,
            "not on the wire"
        );
    }
    called.served()
}

#[test]
#[ignore = "needs a ztunnel: ZTUNNEL_BIN, and ZTUNNEL_SRC with its sources"]
fn a_stock_ztunnel_gets_all_from_control_and_talks_with_the_meshs_pods() {
    let program = Program::from_env().unwrap();
    let lab = Lab::with_mesh(plan()).unwrap();
    let [client, web] = ["shop/client", "shop/web"].map(|key| lab.pod(key));
    let stock = ["stock/client", "stock/server"].map(|key| lab.pod(key));
    // The lab has told the node's agent of them.
    for pod in stock {
        lab.agent(1).remove_pod(pod).unwrap();
    }
    let ztunnel = Ztunnel::start(&lab, &program, &stock).unwrap();
    let ports = [PORT, DENIED, LABELLED].map(|port| port.to_string());
    let _servers = [web, stock[1]].map(|pod| {
        let server = pod.command("mesh-lab-app").arg("serve");
        let server = server.arg(ports.join(","));
        let server = server.spawn().unwrap();
        pod.wait_listening(PORT).unwrap();
        server
    });
    let explain = |e: anyhow::Error| panic!("{e:#}\n{}\n{}", ztunnel.log(), lab.log_tails());
    for (from, to) in [(client, stock[1]), (stock[0], web)] {
        let to = SocketAddr::new(to.v4().into(), PORT);
        wait::until_true(&format!("{} to {to}", from.key()), wait::PATIENCE, || {
            Ok(served(&lab, from, to))
        })
        .unwrap_or_else(explain);
    }

    // It refuses what policy refuses, by the identity that control has signed for the client ...
    let server = |port| SocketAddr::new(stock[1].v4().into(), port);
    assert!(!served(&lab, client, server(DENIED)), "{}", ztunnel.log());
    assert!(served(&lab, web, server(DENIED)), "{}", ztunnel.log());
    // ... and what it can't be told is allowed.
    assert!(!served(&lab, client, server(LABELLED)), "{}", ztunnel.log());
    let log = std::fs::read_to_string(lab.control().daemon.log()).unwrap();
    assert!(log.contains("stock/labelled"), "{log}");
}
