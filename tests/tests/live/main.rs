//! Pods that run are taken into the mesh and out of it, under load: nothing that is open breaks,
//! everything new is in the mesh, and what is older ends by policy or in time.

mod ends;
mod enrol;

use std::net::SocketAddr;

use mesh_lab::{App, Enrolment, Lab, Plan, Pod, PodSpec, wait};

pub(crate) const CLIENT: &str = "front/client";
pub(crate) const WEB: &str = "shop/web";
pub(crate) const PORT: u16 = 7000;
pub(crate) const OTHER_PORT: u16 = 7001;

/// Two pods on two nodes, in namespaces that are not enrolled.
pub(crate) fn plan() -> Plan {
    Plan::nodes(2)
        .namespace("front")
        .namespace("shop")
        .pod(PodSpec::new("front", "client"))
        .pod(PodSpec::new("shop", "web").node(1))
}

pub(crate) fn serve(pod: &Pod) -> App {
    let app = pod.command("mesh-lab-app");
    let app = app.args(["serve", &format!("{PORT},{OTHER_PORT}")]);
    let app = app.spawn().unwrap();
    for port in [PORT, OTHER_PORT] {
        pod.wait_listening(port).unwrap();
    }
    app
}

pub(crate) fn target(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), PORT)
}

/// A pod's state, as its agent has it.
pub(crate) fn wait_state(lab: &Lab, key: &str, state: &str) {
    let pod = lab.pod(key);
    wait::until_true(&format!("{key} to be {state}"), wait::PATIENCE, || {
        Ok(lab.agent(pod.node()).pod_status(pod)?["state"] == state)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

/// Sets a namespace's label and waits until its pod is in the mesh.
pub(crate) fn enrol(lab: &Lab, key: &str, level: Enrolment) {
    let namespace = lab.pod(key).namespace();
    lab.set_enrolment(namespace, level).unwrap();
    wait_state(lab, key, "enrolled");
}

/// How many of a pod's connections are older than its enrolment, by its agent.
pub(crate) fn older(lab: &Lab, key: &str) -> u64 {
    let pod = lab.pod(key);
    let status = lab.agent(pod.node()).pod_status(pod).unwrap();
    status["older"]["connections"].as_u64().unwrap()
}

pub(crate) fn wait_older(lab: &Lab, key: &str, wanted: u64) {
    let what = format!("{wanted} connections of {key} to be older than its enrolment");
    wait::until_true(&what, wait::PATIENCE, || Ok(older(lab, key) == wanted))
        .unwrap_or_else(|e| panic!("{e:#}: {}\n{}", older(lab, key), lab.log_tails()));
}
