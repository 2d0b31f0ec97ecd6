//! Kubelet's probes of pods of the mesh: its own connections, told by its cgroup, to the ports that
//! pods declare for them, and nothing else.

mod changes;
mod grpc;
mod passes;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use mesh_lab::kubelet::Kubelet;
use mesh_lab::{Lab, Netns, Plan, Pod, PodSpec, wait};

pub(crate) const WEB: &str = "shop/web";
/// A web server's port, which the pod declares for a probe.
pub(crate) const PORT: u16 = 8080;
/// Another port of it, which the pod doesn't.
pub(crate) const OTHER: u16 = 8081;
pub(crate) const REDIS: u16 = 6379;
pub(crate) const GRPC: u16 = 8082;

/// A pod that takes members' mutual TLS alone, with one probe of each kind.
pub(crate) fn plan() -> Plan {
    let web = PodSpec::new("shop", "web")
        .port("http", PORT)
        .probe("livenessProbe: {httpGet: {path: /, port: http}}")
        .probe("readinessProbe: {tcpSocket: {port: 6379}}")
        .probe("startupProbe: {grpc: {port: 8082}}");
    Plan::nodes(1).enrolled("shop").kubelet().pod(web)
}

/// A lab whose agent knows its kubelet.
pub(crate) fn lab_with_kubelet(plan: Plan) -> (Lab, Kubelet) {
    let lab = Lab::with_mesh(plan).unwrap();
    let kubelet = lab.kubelet().unwrap();
    wait_found(&lab, &kubelet);
    (lab, kubelet)
}

/// Waits until the node's agent has found this kubelet.
pub(crate) fn wait_found(lab: &Lab, kubelet: &Kubelet) {
    let found = format!("id={}", kubelet.id().unwrap());
    let log = lab.agent(0).daemon.log().to_owned();
    wait::line_in_file(&log, &found, wait::PATIENCE).unwrap();
}

/// A GET by curl, run as kubelet in a namespace; what curl said where it was not answered.
pub(crate) fn get(kubelet: &Kubelet, from: &Netns, to: SocketAddr) -> Result<(), String> {
    get_with(kubelet, from.as_fd(), to, &[])
}

/// [`get`] with further options of curl's.
pub(crate) fn get_with(
    kubelet: &Kubelet,
    from: BorrowedFd<'_>,
    to: SocketAddr,
    options: &[&str],
) -> Result<(), String> {
    let mut curl = kubelet.command(from, "curl").unwrap();
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "20"]);
    curl.args(options).arg(format!("http://{to}/"));
    let output = curl.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or(said)
}

/// The pod's addresses with a port.
pub(crate) fn targets(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [IpAddr::V4(pod.v4()), IpAddr::V6(pod.v6())].map(|ip| SocketAddr::new(ip, port))
}

/// Probes of a pod that arrived, by its agent's metrics.
pub(crate) fn passed(lab: &Lab, key: &str) -> f64 {
    let node = lab.pod(key).node();
    let labels = [format!("pod=\"{key}\"")];
    let labels = labels.each_ref().map(String::as_str);
    let name = "nodemesh_probes_passed_total";
    lab.agent(node)
        .metric(lab.node(node), name, &labels)
        .unwrap()
}

/// What the kernel has refused of a pod, for any reason.
pub(crate) fn kernel_refusals(lab: &Lab, key: &str) -> f64 {
    let node = lab.pod(key).node();
    let labels = [format!("pod=\"{key}\"")];
    let labels = labels.each_ref().map(String::as_str);
    let name = "nodemesh_kernel_refusals_total";
    lab.agent(node)
        .metric(lab.node(node), name, &labels)
        .unwrap()
}
