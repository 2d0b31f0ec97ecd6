//! Pods that a real container runtime makes: containerd, runc and the CNI plugins, asked by the
//! interface that a kubelet asks them by.

mod exec;
mod kinds;
mod plugin;
mod race;
mod reboot;
mod told;

use std::net::IpAddr;
use std::time::Duration;

use mesh_lab::runtime::pods::say_to;
use mesh_lab::runtime::{Container, Runtime, Sandbox};
use mesh_lab::wire::Recording;
use mesh_lab::{Lab, Plan, PodSpec, wait};

/// How long a program in a container may take that makes a call or a few.
pub(crate) const CALLS: Duration = Duration::from_secs(60);
/// Where servers listen.
pub(crate) const PORT: u16 = 7000;

/// A runtime on each of two nodes; the namespace `shop` is enrolled, `legacy` is not.
pub(crate) fn plan() -> Plan {
    Plan::nodes(2).enrolled("shop").namespace("legacy")
}

/// A pod that is made, declared and told to its node's agent, as long as there is no plugin that
/// does.
pub(crate) fn told_pod(lab: &Lab, runtime: &Runtime, spec: &PodSpec) -> anyhow::Result<Sandbox> {
    let sandbox = runtime.run_sandbox(spec)?;
    lab.declare_pod(spec, &sandbox.addresses)?;
    lab.agent(spec.node_index()).add(spec, &sandbox.netns)?;
    Ok(sandbox)
}

/// The end of such a pod: its containers first, so that nothing of it speaks without the mesh.
pub(crate) fn end_told_pod(
    lab: &Lab,
    runtime: &Runtime,
    sandbox: &Sandbox,
    containers: &[&Container],
) -> anyhow::Result<()> {
    for container in containers {
        runtime.cri.stop_container(&container.id, 0)?;
    }
    lab.agent(sandbox.spec.node_index()).remove(&sandbox.spec)?;
    lab.withdraw_pod(&sandbox.spec)?;
    runtime.remove_sandbox(sandbox)
}

/// The lab's server in a container; it listens.
pub(crate) fn serve(runtime: &Runtime, sandbox: &Sandbox) -> Container {
    let port = PORT.to_string();
    let command = ["/bin/mesh-lab-app", "serve", &port];
    let server = runtime
        .start_container(sandbox, "server", &command)
        .unwrap();
    let listens = format!("grep -q ':{PORT:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6");
    wait::until_true("the server to listen", wait::PATIENCE, || {
        runtime.shell(&server, &listens).map(|_| true)
    })
    .unwrap();
    server
}

/// Nothing that pods have said to pods is in clear, neither these bytes nor anything else: each of
/// their TCP streams is TLS from its first byte on.
pub(crate) fn assert_tunnels_only(place: &str, recording: &Recording, needle: &str) {
    assert!(
        !recording.contains(needle.as_bytes()),
        "in clear on the {place}"
    );
    let streams = recording.streams().between(is_pods, is_pods);
    let summary = streams.assert_all_tls();
    let summary = summary.unwrap_or_else(|e| panic!("on the {place}: {e:#}"));
    println!("{place}: {summary:?}");
}

/// Whether an address is of the lab's blocks for pods, rather than of control and its nodes.
fn is_pods(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[..2] == [10, 202])
}

/// A shell command that says a word to a pod's server, and fails unless it comes back.
pub(crate) fn say(word: &str, sandbox: &Sandbox) -> String {
    say_to(word, &format!("{}:{PORT}", sandbox.address()))
}
