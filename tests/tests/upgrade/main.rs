//! Agents are upgraded and downgraded under load, supervisor and workers: no byte is lost, no
//! request fails, no count goes back. New workers that don't work replace none.

mod between;
mod bounds;
mod counted;
mod pods_go;
mod told;
mod under_load;
mod uninstall;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use mesh_lab::{App, Lab, Plan, Pod, PodSpec, programs, wait};
use serde_json::Value;

pub(crate) const CLIENT: &str = "shop/client";
pub(crate) const NEIGHBOUR: &str = "shop/neighbour";
pub(crate) const WEB: &str = "shop/web";
pub(crate) const DB: &str = "data/db";
pub(crate) const PODS: [&str; 4] = [CLIENT, NEIGHBOUR, WEB, DB];
pub(crate) const HTTP: u16 = 80;
pub(crate) const COUNTED: u16 = 7000;

pub(crate) fn lab(plan: impl FnOnce(Plan) -> Plan) -> Lab {
    let two_nodes = Plan::two_nodes().pod(PodSpec::new("shop", "neighbour"));
    Lab::with_mesh(plan(two_nodes)).unwrap()
}

pub(crate) fn to(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), port)
}

pub(crate) fn workers(lab: &Lab) -> [i32; 4] {
    PODS.map(|key| {
        let pod = lab.pod(key);
        lab.agent(pod.node()).worker_pid(pod).unwrap()
    })
}

/// A copy of the agent that is another program: what follows the sections of an executable is
/// nobody's.
pub(crate) fn another_agent(lab: &Lab, name: &str) -> PathBuf {
    let copy = lab.folder().join(name);
    fs::copy(programs::mesh_binary("mesh-agent").unwrap(), &copy).unwrap();
    let mut file = OpenOptions::new().append(true).open(&copy).unwrap();
    file.write_all(name.as_bytes()).unwrap();
    copy
}

/// How a supervisor is ended before another one is started.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// As a container is: SIGTERM, and SIGKILL after it.
    Stopped,
    /// SIGKILL.
    Killed,
}

/// Replaces a node's supervisor by another program.
pub(crate) fn replace_supervisor(lab: &mut Lab, node: usize, program: PathBuf, end: End) {
    let (agent, host) = lab.agent_mut(node);
    match end {
        End::Stopped => assert!(agent.daemon.terminate().unwrap().success()),
        End::Killed => agent.daemon.kill9().unwrap(),
    }
    agent.set_program(program);
    agent.start(host).unwrap();
}

/// Waits until the node's status says so of all pods of the mesh on it, and of the roll.
pub(crate) fn wait_status(lab: &Lab, node: usize, what: &str, holds: impl Fn(&Value) -> bool) {
    wait::until_true(what, wait::scaled(wait::PATIENCE) * 3, || {
        Ok(holds(&lab.agent(node).status()?))
    })
    .unwrap_or_else(|e| {
        let status = lab.agent(node).status();
        panic!("{e:#}\n{status:#?}\n{}", lab.log_tails())
    });
}

/// Nobody's worker is of another program, and none waits for its turn.
pub(crate) fn is_rolled(status: &Value) -> bool {
    let roll = &status["roll"];
    roll["left"] == 0 && roll["under_way"].as_array().is_some_and(Vec::is_empty)
}

/// The pods of the mesh on a node, as its status has them.
pub(crate) fn pods(status: &Value) -> impl Iterator<Item = &Value> {
    let pods = status["pods"].as_array().into_iter().flatten();
    pods.filter(|pod| pod["state"] == "enrolled")
}

/// Workers that drain, and their connections.
pub(crate) fn draining(status: &Value) -> (usize, u64) {
    let all = pods(status).filter_map(|pod| pod["draining"].as_array());
    let all: Vec<&Value> = all.flatten().collect();
    let connections = all.iter().filter_map(|old| old["connections"].as_u64());
    (all.len(), connections.sum())
}

/// 500 short requests a second from one pod to another's nginx.
pub(crate) fn short_requests(from: &Pod, to: SocketAddr) -> App {
    let load = from.command("mesh-lab-load");
    let load = load.args(["short", &to.to_string(), "64", "900", "500"]);
    let app = load.spawn().unwrap();
    app.wait_line("answered").unwrap();
    app
}

/// How many of them were answered so far; panics if one was not.
pub(crate) fn answered(app: &App) -> u64 {
    let said = app.stdout();
    let failed: Vec<_> = said.lines().filter(|l| l.starts_with("failed")).collect();
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
    let told = said.lines().rev().find_map(|line| {
        let told: Value = serde_json::from_str(line).ok()?;
        told["answered"].as_u64()
    });
    told.unwrap_or(0)
}

/// What no roll may change.
pub(crate) fn assert_nothing_refused(lab: &Lab) {
    for key in PODS {
        let node = lab.pod(key).node();
        let label = format!("pod=\"{key}\"");
        let counts = [
            "nodemesh_kernel_refusals_total",
            "nodemesh_refusals_inbound_total",
            "nodemesh_refusals_outbound_total",
            "nodemesh_cut_inbound_total",
            "nodemesh_cut_outbound_total",
            "nodemesh_worker_restarts_total",
        ]
        .map(|name| {
            lab.agent(node)
                .metric(lab.node(node), name, &[&label])
                .unwrap()
        });
        assert_eq!(counts, [0.0; 6], "{key}: {}", lab.log_tails());
    }
}
