//! Nodes come, are drained and are lost.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::install::text;
use super::load::Load;
use crate::k8s_test::case::{Case, Verdict};
use crate::k8s_test::session::{AGENTS, MARK, Session, TAINT};

const GROUP: &str = "nodes";
pub(in crate::k8s_test) const CASES: &[Case] = &[
    Case::new(
        GROUP,
        "a start-up taint goes once that node's agent is ready, and no other taint",
        startup_taint,
    ),
    Case::new(
        GROUP,
        "a node is drained under load: no request fails",
        drained,
    ),
    Case::new(
        GROUP,
        "a node is lost under load: requests go to the other nodes' pods",
        lost,
    ),
];

/// A node of the run's own, by its mark, so that clean-up finds it.
fn mark(session: &Session<'_>, node: &str) -> Result<()> {
    let mark = format!("{MARK}={}", session.settings.run);
    session
        .kubectl(&["label", "node", node, &mark, "--overwrite"])
        .map(drop)
}

fn node_of(pod: &Value) -> String {
    text(&pod["spec"]["nodeName"])
}

fn startup_taint(session: &Session<'_>) -> Result<Verdict> {
    let agents = session.items(&["-n", AGENTS, "get", "pods"])?;
    let Some(node) = agents.first().map(node_of) else {
        anyhow::bail!("no agents are there");
    };
    mark(session, &node)?;
    let ours = format!("{TAINT}=true:NoSchedule");
    // Of an effect that keeps nobody off, and stays.
    let other = "nodemesh.dev/k8s-test=stays:PreferNoSchedule";
    session.kubectl(&["taint", "node", &node, &ours, other, "--overwrite"])?;
    let keys = |session: &Session<'_>| -> Result<Vec<String>> {
        let node = session.json(&["get", "node", &node])?;
        let taints = node["spec"]["taints"].as_array().cloned();
        Ok(taints
            .unwrap_or_default()
            .iter()
            .map(|t| text(&t["key"]))
            .collect())
    };
    session.until("the start-up taint gone", |session| {
        let keys = keys(session)?;
        Ok(keys
            .contains(&TAINT.to_owned())
            .then(|| format!("node {node} has {keys:?}")))
    })?;
    let left = keys(session)?;
    ensure!(
        left.contains(&MARK.to_owned()),
        "another taint went with it: {left:?} are left"
    );
    session.kubectl(&["taint", "node", &node, &format!("{MARK}-")])?;
    Ok(Verdict::Passed)
}

/// A node with a pod of `deployment/web`, and another of them elsewhere, that has not the client on it.
fn without_client(session: &Session<'_>) -> Result<Option<String>> {
    let shop = session.shop();
    let nodes = |app: &str| -> Result<Vec<String>> {
        let pods = session.items(&["-n", &shop, "get", "pods", "-l", &format!("app={app}")])?;
        Ok(pods.iter().map(node_of).collect())
    };
    let (web, client) = (nodes("web")?, nodes("client")?);
    let elsewhere = |node: &&String| web.iter().any(|other| other != *node);
    let found = web
        .iter()
        .find(|node| !client.contains(node) && elsewhere(node));
    Ok(found.cloned())
}

const ALONE: &str = "no node has a pod of deployment/web without the client beside it: it takes two nodes \
                     that pods may run on";

fn drained(session: &Session<'_>) -> Result<Verdict> {
    let Some(node) = without_client(session)? else {
        return Ok(Verdict::NotHere(ALONE.to_owned()));
    };
    mark(session, &node)?;
    let load = Load::begin(session)?;
    let timeout = format!("--timeout={}s", session.settings.patience.as_secs());
    // Of this run's namespaces alone: the cluster may have other people's pods.
    let selected = format!("--pod-selector=nodemesh-test={}", session.settings.run);
    let how = [
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        &selected,
        &timeout,
    ];
    session.kubectl(&[&["drain", &node], &how[..]].concat())?;
    let outcome = session.rolled_out(&session.shop(), "deployment/web");
    let outcome = outcome.and_then(|()| load.requests_lost(session));
    session.kubectl(&["uncordon", &node])?;
    outcome?;
    Ok(Verdict::Passed)
}

fn lost(session: &Session<'_>) -> Result<Verdict> {
    let Some((lose, restore)) = &session.settings.lose_node else {
        let why = "--lose-node and --restore-node are not given: kubectl can't take a node's power";
        return Ok(Verdict::NotHere(why.to_owned()));
    };
    let Some(node) = without_client(session)? else {
        return Ok(Verdict::NotHere(ALONE.to_owned()));
    };
    let ready = |session: &Session<'_>| -> Result<bool> {
        let node = session.json(&["get", "node", &node])?;
        let conditions = node["status"]["conditions"].as_array().cloned();
        let conditions = conditions.unwrap_or_default();
        Ok(conditions
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    session.shell(&format!("NODE={node}; export NODE; {lose}"))?;
    let seen = session.until("the node seen as lost", |session| {
        Ok(ready(session)?.then(|| format!("{node} is still ready")))
    });
    // What was under way to it fails; from then on nothing does.
    let outcome = seen.and_then(|()| Load::begin(session)?.requests_lost(session));
    session.shell(&format!("NODE={node}; export NODE; {restore}"))?;
    session.until("the node back", |session| {
        Ok((!ready(session)?).then(|| format!("{node} is not ready")))
    })?;
    outcome?;
    session.rolled_out(AGENTS, "daemonset/nodemesh-agent")?;
    Ok(Verdict::Passed)
}
