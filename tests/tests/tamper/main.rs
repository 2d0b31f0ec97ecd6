//! Pods whose apps may change their own network: as root, with `CAP_NET_ADMIN`, by the programs
//! that anybody has. Each trick is shown to work in a pod outside the mesh, then tried in one
//! inside: nothing leaves in clear, it is noticed, put right or the pod cut off, and told of.

mod addresses;
mod devices;
mod flood;
mod nat;
mod ports;
mod sockets;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::{App, Lab, Netns, Plan, Pod, PodSpec, call, manifest, servers, wait};

pub(crate) const CLIENT: &str = "shop/client";
pub(crate) const WEB: &str = "shop/web";
pub(crate) const NEIGHBOUR: &str = "shop/neighbour";
/// Outside the mesh, on the client's node.
pub(crate) const FREE: &str = "legacy/caller";
pub(crate) const PORT: u16 = 7000;
/// For what the agent finds by the clock, every 5 s.
pub(crate) const BY_THE_CLOCK: Duration = Duration::from_secs(30);

pub(crate) fn plan() -> Plan {
    Plan::two_nodes().pod(PodSpec::new("shop", "neighbour"))
}

/// With UDP allowed to everybody, so that something else must contain it.
pub(crate) fn with_udp(plan: Plan) -> Plan {
    let spec = "{direction: Outbound, action: Allow, rules: \
                [{peers: [{cidr: 0.0.0.0/0}, {cidr: \"::/0\"}], ports: [UDP]}]}";
    plan.manifest("udp", &manifest::authorization("shop/udp", spec))
}

pub(crate) fn serve(pod: &Pod, port: u16) -> App {
    servers::echo(pod, port).unwrap()
}

pub(crate) fn target(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), PORT)
}

/// Runs a program in a pod as root, with every capability.
pub(crate) fn as_root(pod: &Pod, words: &str) -> Result<String> {
    let mut words = words.split(' ');
    let program = words.next().context("a program")?;
    pod.command(program).root().args(words).output()?.ok()
}

/// How often that was found in a pod, with that outcome.
pub(crate) fn found(lab: &Lab, pod: &Pod, kind: &str, outcome: &str) -> f64 {
    let labels = [
        format!("pod=\"{}\"", pod.key()),
        format!("kind=\"{kind}\""),
        format!("outcome=\"{outcome}\""),
    ];
    let labels = labels.each_ref().map(String::as_str);
    lab.agent(pod.node())
        .metric(lab.node(pod.node()), "nodemesh_tampering_total", &labels)
        .unwrap()
}

/// Waits until it is counted, and told of in a line that has `detail`.
pub(crate) fn wait_found(lab: &Lab, pod: &Pod, kind: &str, outcome: &str, detail: &str) {
    let what = format!("{kind} of {} to be {outcome}: {detail}", pod.key());
    let fields = [
        format!("pod=\"{}\"", pod.key()),
        format!("kind=\"{kind}\""),
        format!("outcome=\"{outcome}\""),
        detail.to_owned(),
    ];
    let seen = wait::until_true(&what, BY_THE_CLOCK, || {
        let log = std::fs::read_to_string(lab.agent(pod.node()).daemon.log())?;
        let mut lines = log.lines().filter(|line| line.contains("tampering"));
        let told = lines.any(|line| fields.iter().all(|field| line.contains(field)));
        Ok(told && found(lab, pod, kind, outcome) > 0.0)
    });
    seen.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

/// Waits until the agent reports the pod in that state, and returns the reason it gives.
pub(crate) fn wait_state(lab: &Lab, pod: &Pod, state: &str) -> String {
    let agent = lab.agent(pod.node());
    let what = format!("{} to be {state}", pod.key());
    let status = wait::until(&what, BY_THE_CLOCK, || {
        let status = agent.pod_status(pod)?;
        Ok((status["state"] == state).then_some(status))
    });
    let status = status.unwrap_or_else(|e| {
        let status = agent.pod_status(pod);
        panic!("{e:#}: {status:?}\n{}", lab.log_tails())
    });
    status["reason"].as_str().unwrap().to_owned()
}

/// Calls until a call is served.
pub(crate) fn wait_served(lab: &Lab, from: &Netns, to: SocketAddr) {
    let served = wait::until_true("a call to be served", BY_THE_CLOCK, || {
        Ok(call::tcp(from, to).served())
    });
    served.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

/// A text that is nowhere else.
pub(crate) fn nonce() -> String {
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    random.trim().to_owned()
}
