//! The mesh is taken off, with pods still enrolled: nodes and pods are left clean and connected.

use anyhow::{Result, ensure};

use super::install::install;
use crate::k8s_test::case::{Case, Verdict};
use crate::k8s_test::clean_up;
use crate::k8s_test::session::{AGENTS, CONTROL, Session};

const GROUP: &str = "uninstall";
pub(in crate::k8s_test) const CASES: &[Case] = &[
    Case::new(
        GROUP,
        "unload takes the mesh off every node, and pods that were enrolled are connected in clear",
        unload,
    )
    .needed(),
    Case::new(
        GROUP,
        "helm uninstall and the deletions that OPERATING.md names leave nothing",
        nothing_left,
    ),
];

/// Calls from one enrolled pod to another get through: so they did before.
fn connected(session: &Session<'_>) -> Result<()> {
    let shop = session.shop();
    session.until("a call without the mesh", |session| {
        let url = format!("http://web.{shop}/hostname");
        let call = ["curl", "-sf", "-o", "/dev/null", "-m", "10", &url];
        let said = session.exec(&shop, "deployment/client", &call);
        Ok(said.err().map(|error| format!("{error:#}")))
    })
}

fn unload(session: &Session<'_>) -> Result<Verdict> {
    session.helm(&install(session, "upgrade", &["agent.unload=true"]).as_strs())?;
    off_the_nodes(session)?;
    connected(session)?;
    // A pod that is made now starts without an agent being asked.
    let shop = session.shop();
    session.kubectl(&["-n", &shop, "rollout", "restart", "deployment/web"])?;
    session.rolled_out(&shop, "deployment/web")?;
    connected(session)?;
    Ok(Verdict::Passed)
}

/// Waits until each node's agent says that the mesh is off.
pub(in crate::k8s_test) fn off_the_nodes(session: &Session<'_>) -> Result<()> {
    let selected = "app.kubernetes.io/name=nodemesh-agent";
    session.until("the mesh off every node", |session| {
        let nodes = session.json(&["-n", AGENTS, "get", "daemonset", "nodemesh-agent"])?;
        let wanted = &nodes["status"]["desiredNumberScheduled"];
        let updated = &nodes["status"]["updatedNumberScheduled"];
        let pods = session.kubectl(&["-n", AGENTS, "get", "pods", "-l", selected, "-o", "name"])?;
        if updated != wanted {
            return Ok(Some(format!(
                "{updated} of {wanted} agents are told to unload"
            )));
        }
        for pod in pods.lines() {
            // It ends and is started again: one of both has its words.
            let log =
                |more: &[&str]| session.kubectl(&[&["-n", AGENTS, "logs", pod], more].concat());
            let said = log(&[]).unwrap_or_default() + &log(&["--previous"]).unwrap_or_default();
            if !said.contains("is off this machine") {
                return Ok(Some(format!("{pod} has not said so")));
            }
        }
        Ok(None)
    })
}

fn nothing_left(session: &Session<'_>) -> Result<Verdict> {
    session.helm(&["uninstall", "nodemesh", "--namespace", CONTROL, "--wait"])?;
    clean_up::of_the_cluster(session)?;
    for kind in [
        "clusterroles",
        "clusterrolebindings",
        "crd",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
    ] {
        let names = session.kubectl(&["get", kind, "-o", "name"])?;
        let left: Vec<&str> = names
            .lines()
            .filter(|name| name.contains("nodemesh"))
            .collect();
        ensure!(left.is_empty(), "left: {left:?}");
    }
    connected(session)?;
    Ok(Verdict::Passed)
}
