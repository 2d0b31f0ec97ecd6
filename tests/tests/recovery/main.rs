//! What is killed comes back, and what is not killed does not notice. What is taken out is
//! gone; what is not as control says is not taken in.

mod pods;
mod supervisors;
mod versions;
mod workers;

use std::net::SocketAddr;

use mesh_lab::{App, Lab, Plan, Pod, PodSpec};

pub(crate) const CLIENT: &str = "shop/client";
pub(crate) const WEB: &str = "shop/web";
pub(crate) const NEIGHBOUR: &str = "shop/neighbour";
pub(crate) const DB: &str = "data/db";
pub(crate) const PORT: u16 = 7000;

/// The two nodes, with a neighbour of the client on its node.
pub(crate) fn lab() -> Lab {
    lab_with(|plan| plan)
}

/// The same, planned otherwise.
pub(crate) fn lab_with(plan: impl FnOnce(Plan) -> Plan) -> Lab {
    let two_nodes = Plan::two_nodes().pod(PodSpec::new("shop", "neighbour"));
    Lab::with_mesh(plan(two_nodes)).unwrap()
}

pub(crate) fn serve(pod: &Pod) -> App {
    let app = pod
        .command("mesh-lab-app")
        .args(["serve", &PORT.to_string()]);
    let app = app.spawn().unwrap();
    pod.wait_listening(PORT).unwrap();
    app
}

pub(crate) fn target(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), PORT)
}

pub(crate) fn worker(lab: &Lab, key: &str) -> i32 {
    let pod = lab.pod(key);
    lab.agent(pod.node()).worker_pid(pod).unwrap()
}
