//! A node that is off for a moment. (It is not: everything is taken away that a machine's end takes,
//! and what is on its disk stays.)

use std::net::IpAddr;

use mesh_lab::runtime::Runtime;
use mesh_lab::runtime::pods::say_to;
use mesh_lab::{Lab, PodSpec, wait};

use crate::plugin::{chain, pod, refused_as};
use crate::{CALLS, PORT, assert_tunnels_only, plan};

const NONCE: &str = "in-clear-after-a-boot";

/// Waits until the node knows a pod with these addresses, as its API has it.
fn known(lab: &Lab, spec: &PodSpec, addresses: &[IpAddr]) {
    let version = || lab.agent(0).status().unwrap()["control"]["discovery_version"].clone();
    let before = version();
    let label = fastrand::u32(..).to_string();
    lab.declare_pod(&spec.clone().label("seen", &label), addresses)
        .unwrap();
    wait::until_true("another version of the mesh", wait::PATIENCE, || {
        Ok(version() != before)
    })
    .unwrap();
}

#[test]
fn a_node_that_comes_up_starts_no_pod_before_its_agent() {
    let mut lab = Lab::with_mesh(plan().pod(PodSpec::new("shop", "web").node(1))).unwrap();
    let mut runtime = Runtime::start(&lab, 0, 8).unwrap();
    chain(&lab, &runtime, 0);
    let web = lab.pod("shop/web");
    let to = format!("{}:{PORT}", web.v4());
    let _server = web
        .command("mesh-lab-app")
        .args(["serve", &PORT.to_string()])
        .spawn()
        .unwrap();
    web.wait_listening(PORT).unwrap();
    let fabric = lab.capture(lab.node(0)).unwrap();
    let spec = PodSpec::new("shop", "client");
    let before = pod(&lab, &runtime, &spec).unwrap();
    let talk = format!("while {}; do echo said; done", say_to(NONCE, &to));
    let talker = runtime
        .start_container(&before, "app", &["sh", "-c", &talk])
        .unwrap();
    wait::until_true("some calls", CALLS, || Ok(talker.log().lines().count() > 3))
        .unwrap_or_else(|e| panic!("{e:#}: {}", talker.log()));

    known(&lab, &before.spec, &before.addresses);

    lab.agent_mut(0).0.power_off().unwrap();
    runtime.power_off(lab.node(0)).unwrap();
    runtime.start_again(lab.node(0)).unwrap();
    // A kubelet finds a sandbox that is no more, and makes another for the same pod. The API says
    // until then which address the pod had.
    let spec = &before.spec;
    runtime.remove_sandbox(&before).unwrap();
    for _ in 0..3 {
        let outcome = runtime.run_sandbox(spec);
        refused_as(&runtime, spec, outcome, &["nodemesh-cni", "agent"]);
    }
    let (agent, host) = lab.agent_mut(0);
    agent.start(host).unwrap();
    let after = runtime.run_sandbox(spec);
    let after = after.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    assert_ne!(after.address(), before.address(), "else less is shown");
    known(&lab, spec, &before.addresses);
    let status = lab.agent(0).status().unwrap();
    assert_eq!(status["pods"][0]["state"], "enrolled", "{status}");
    lab.declare_pod(spec, &after.addresses).unwrap();
    let call = say_to(NONCE, &to);
    let again = runtime
        .start_container(&after, "app", &["sh", "-c", &call])
        .unwrap();
    runtime.wait_exit(&again, CALLS).unwrap();
    runtime.remove_sandbox(&after).unwrap();
    assert_tunnels_only("fabric", &fabric.stop().unwrap(), NONCE);
    runtime.collect_garbage().unwrap();
    runtime.check_empty().unwrap();
    drop(runtime);
    lab.finish().unwrap();
}
