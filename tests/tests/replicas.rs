//! Control with two replicas: one is killed, its agents go to the other, and back again. What
//! changes meanwhile arrives; what is denied is denied all the time.

use std::net::SocketAddr;

use mesh_lab::mesh::Control;
use mesh_lab::traffic::Traffic;
use mesh_lab::{Lab, Plan, PodSpec, call, manifest, wait};
use serde_json::Value;

/// Allowed throughout.
const OPEN: u16 = 7000;
/// Denied throughout.
const SHUT: u16 = 7001;
/// Denied by what is put there just before a replica is killed ...
const BEFORE: u16 = 7002;
/// ... and by what is put there after.
const AFTER: u16 = 7003;

fn deny(port: u16) -> String {
    let spec = format!("{{direction: Inbound, action: Deny, rules: [{{ports: [{port}]}}]}}");
    manifest::authorization(&format!("shop/deny-{port}"), &spec)
}

fn controls(lab: &Lab) -> [&Control; 2] {
    let mesh = lab.mesh.as_ref().unwrap();
    [&mesh.control, &mesh.more[0]]
}

/// The replica that a node's agent follows.
fn used(lab: &Lab, node: usize) -> Option<usize> {
    let status = lab.agent(node).status().unwrap();
    let replica = &status["control"]["replica"];
    let of = controls(lab).map(|c| *replica == c.address().to_string());
    let connected = status["control"]["connected"] == true;
    of.iter().position(|used| *used).filter(|_| connected)
}

/// Waits until a replica knows of both nodes what they have in force.
fn wait_reports(lab: &Lab, replica: usize) {
    let what = format!("reports of both nodes to replica {replica}");
    let told = wait::until_true(&what, wait::PATIENCE, || {
        let mut status = controls(lab)[replica].meshctl(&["status", "-o", "json"])?;
        let output = status.output()?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
        let current = |node: &&Value| node["report"]["behind"] == false;
        Ok(nodes.iter().filter(current).count() == 2)
    });
    told.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

/// Waits until each of these ports answers, or no longer does; the one that is denied never does.
fn wait_answers(lab: &Lab, ports: &[u16], answer: bool) {
    let (client, web) = (lab.pod("shop/client"), lab.pod("shop/web"));
    let call = |port: u16| call::tcp(&client.netns, SocketAddr::new(web.v4().into(), port));
    let what = format!("answers from {ports:?}: {answer}");
    let changed = wait::until_true(&what, wait::PATIENCE, || {
        assert!(!call(SHUT).served(), "{}", lab.log_tails());
        Ok(ports.iter().all(|port| call(*port).served() == answer))
    });
    changed.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

#[test]
fn agents_go_from_replica_to_replica_and_miss_nothing() {
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .replicas(2)
        .manifest("shut", &deny(SHUT))
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "web").node(1));
    let mut lab = Lab::with_mesh(plan).unwrap();
    let server = lab.pod("shop/web").command("mesh-lab-app").arg("serve");
    let ports = [OPEN, SHUT, BEFORE, AFTER].map(|port| port.to_string());
    let server = server.arg(ports.join(","));
    let _server = server.spawn().unwrap();
    lab.pod("shop/web").wait_listening(AFTER).unwrap();
    let to = SocketAddr::new(lab.pod("shop/web").v4().into(), OPEN);
    let stream = Traffic::stream(lab.pod("shop/client"), to);
    let calls = Traffic::calls(lab.pod("shop/client"), to);
    wait_answers(&lab, &[OPEN, BEFORE, AFTER], true);

    let names = [("before", BEFORE), ("after", AFTER)];
    for denied in [true, false] {
        // The node where the denials are in force.
        let killed = wait::until("a replica in use", wait::PATIENCE, || Ok(used(&lab, 1)));
        let killed = killed.unwrap();
        for replica in [0, 1] {
            wait_reports(&lab, replica);
        }
        let change = |lab: &Lab, (name, port): (&str, u16)| match denied {
            true => lab.write_manifest(name, &deny(port)).unwrap(),
            false => lab.remove_manifest(name).unwrap(),
        };
        change(&lab, names[0]);
        lab.replica_mut(killed).0.daemon.kill9().unwrap();
        change(&lab, names[1]);
        wait_answers(&lab, &[BEFORE, AFTER], !denied);
        wait::until_true("both agents at the other", wait::PATIENCE, || {
            Ok([0, 1].map(|node| used(&lab, node)) == [Some(1 - killed); 2])
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
        let (replica, host) = lab.replica_mut(killed);
        replica.start(host).unwrap();
    }
    wait_answers(&lab, &[OPEN], true);
    stream.finish_unharmed("a stream");
    calls.finish_unharmed("calls");
    let name = "nodemesh_control_moves_total";
    let moves = lab.agent(1).metric(lab.node(1), name, &[]).unwrap();
    assert!(moves >= 2.0, "{moves}\n{}", lab.log_tails());
}
