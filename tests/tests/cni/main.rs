//! Pods are enrolled by the CNI plugin before they start, or don't start. The tests play the
//! container runtime, and kubelet where it reports pods' addresses.

mod deletion;
mod enrolment;
mod install;
mod kinds;
mod refusals;
mod running;

use std::net::SocketAddr;

use mesh_lab::{App, Lab, Plan, Pod, PodSpec};

pub(crate) const WEB: &str = "shop/web";
pub(crate) const NEW: &str = "shop/new";
pub(crate) const PORT: u16 = 7000;
/// How long an enrolment may take, in ms, on a machine that does other things too.
pub(crate) const PATIENCE_MS: u64 = 60_000;
/// Where it is to be too short.
pub(crate) const SHORT_MS: u64 = 1_500;

/// A server on the second of two nodes.
pub(crate) fn plan() -> Plan {
    Plan::nodes(2)
        .enrolled("shop")
        .namespace("plain")
        .pod(PodSpec::new("shop", "web").node(1))
}

/// A lab with the mesh, and a pod on the first node that nobody knows.
pub(crate) fn lab(plan: Plan) -> Lab {
    let mut lab = Lab::with_mesh(plan).unwrap();
    let new = PodSpec::new("shop", "new").uid("uid-1");
    lab.make_pod(new).unwrap();
    lab
}

pub(crate) fn serve(pod: &Pod) -> App {
    let app = pod.command("mesh-lab-app");
    let app = app.args(["serve", &PORT.to_string()]).spawn().unwrap();
    pod.wait_listening(PORT).unwrap();
    app
}

pub(crate) fn target(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), PORT)
}
