//! Takes away what a run has made, as the cluster shows it: also of a run that was killed.

use anyhow::{Result, bail, ensure};

use super::cases::uninstall::off_the_nodes;
use super::session::{CONTROL, MARK, Session, TAINT};

/// Takes everything away. Each step is tried, whatever becomes of the others.
///
/// # Errors
/// What could not be taken away.
pub(super) fn run(session: &Session<'_>) -> Result<()> {
    let marked = session.kubectl(&["get", "namespaces,nodes", "-l", MARK, "-o", "name"])?;
    let mut faults = Vec::new();
    let mut tried = |what: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            faults.push(format!("{what}: {error:#}"));
        }
    };
    for node in marked.lines().filter_map(|name| name.strip_prefix("node/")) {
        tried("node", restore(session, node));
    }
    if marked
        .lines()
        .any(|name| name == format!("namespace/{CONTROL}"))
    {
        tried("the mesh", uninstall(session));
        tried("what is the cluster's", of_the_cluster(session));
    }
    let delete = [
        "delete",
        "namespaces",
        "-l",
        MARK,
        "--wait=true",
        "--timeout=300s",
    ];
    tried("namespaces", session.kubectl(&delete).map(drop));
    ensure!(
        faults.is_empty(),
        "not everything was taken away:\n{}\nsee what is there with: kubectl get namespaces,nodes -l {MARK}",
        faults.join("\n")
    );
    Ok(())
}

/// A node as it was.
fn restore(session: &Session<'_>, node: &str) -> Result<()> {
    for key in [TAINT, MARK] {
        let removal = session.kubectl(&["taint", "node", node, &format!("{key}-")]);
        if let Err(error) = removal
            && !format!("{error:#}").contains("not found")
        {
            return Err(error);
        }
    }
    session.kubectl(&["uncordon", node])?;
    session
        .kubectl(&["label", "node", node, &format!("{MARK}-")])
        .map(drop)
}

/// The chart, from nodes first.
fn uninstall(session: &Session<'_>) -> Result<()> {
    let releases = session.helm(&["list", "--namespace", CONTROL, "--all", "--short"])?;
    if !releases.lines().any(|release| release == "nodemesh") {
        return Ok(());
    }
    let chart = session.settings.chart.as_str();
    let upgrade = [
        "upgrade",
        "nodemesh",
        chart,
        "--namespace",
        CONTROL,
        "--reuse-values",
    ];
    let unload = ["--set", "agent.unload=true"];
    let unloaded = session.helm(&[&upgrade[..], &unload[..]].concat());
    let unloaded = unloaded.and_then(|_| off_the_nodes(session));
    let uninstall = ["uninstall", "nodemesh", "--namespace", CONTROL, "--wait"];
    let uninstalled = session.helm(&uninstall).map(drop);
    match unloaded {
        Ok(()) => uninstalled,
        Err(error) => {
            bail!("the mesh may still be on nodes (`mesh-agent unload` takes it off): {error:#}")
        }
    }
}

/// What an uninstall of the chart keeps: the mesh's kinds and their policies of admission.
pub(super) fn of_the_cluster(session: &Session<'_>) -> Result<()> {
    for kind in [
        "crd",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
    ] {
        let names = session.kubectl(&["get", kind, "-o", "name"])?;
        for name in names.lines().filter(|name| name.ends_with(".nodemesh.dev")) {
            session.kubectl(&["delete", name, "--wait=true"])?;
        }
    }
    Ok(())
}
