//! Agents and apps are replaced while load runs.

use anyhow::{Result, ensure};

use super::load::Load;
use crate::k8s_test::case::{Case, Verdict};
use crate::k8s_test::session::{AGENTS, Session};

const GROUP: &str = "rollout";
pub(in crate::k8s_test) const CASES: &[Case] = &[
    Case::new(
        GROUP,
        "agents are rolled under load: no request fails, no connection is lost",
        agents_roll,
    ),
    Case::new(
        GROUP,
        "agents are killed under load: no request fails, no connection is lost",
        agents_are_killed,
    ),
    Case::new(
        GROUP,
        "workers are rolled under load: no request fails",
        workers_roll,
    ),
    Case::new(
        GROUP,
        "a Deployment is rolled under load: no request fails",
        pods_roll,
    ),
    Case::new(
        GROUP,
        "control is rolled under load: no request fails, no connection is lost",
        control_rolls,
    ),
];

fn agents_roll(session: &Session<'_>) -> Result<Verdict> {
    let load = Load::begin(session)?;
    session.kubectl(&[
        "-n",
        AGENTS,
        "rollout",
        "restart",
        "daemonset/nodemesh-agent",
    ])?;
    session.rolled_out(AGENTS, "daemonset/nodemesh-agent")?;
    load.nothing_lost(session)?;
    Ok(Verdict::Passed)
}

fn agents_are_killed(session: &Session<'_>) -> Result<Verdict> {
    let load = Load::begin(session)?;
    let selected = "app.kubernetes.io/name=nodemesh-agent";
    let now = ["--force", "--grace-period=0", "--wait=true"];
    let delete = ["-n", AGENTS, "delete", "pods", "-l", selected];
    session.kubectl(&[&delete[..], &now].concat())?;
    session.rolled_out(AGENTS, "daemonset/nodemesh-agent")?;
    load.nothing_lost(session)?;
    Ok(Verdict::Passed)
}

/// A worker that is replaced finishes its connections, and no more: a connection that is kept is told to end.
fn workers_roll(session: &Session<'_>) -> Result<Verdict> {
    let load = Load::begin(session)?;
    let selected = "app.kubernetes.io/name=nodemesh-agent";
    let agents = session.kubectl(&["-n", AGENTS, "get", "pods", "-l", selected, "-o", "name"])?;
    ensure!(!agents.trim().is_empty(), "no agents are there");
    for agent in agents.lines() {
        session.exec(AGENTS, agent, &["/usr/bin/mesh-agent", "roll", "--all"])?;
    }
    session.until("workers rolled", |session| {
        for agent in agents.lines() {
            let said = session.exec(AGENTS, agent, &["/usr/bin/mesh-agent", "status"])?;
            let status: serde_json::Value = serde_json::from_str(&said)?;
            let (left, stopped) = (&status["roll"]["left"], &status["roll"]["stopped"]);
            ensure!(*stopped == "", "{agent}: the roll has stopped: {stopped}");
            if left.as_u64() != Some(0) {
                return Ok(Some(format!("{agent}: {}", status["roll"])));
            }
        }
        Ok(None)
    })?;
    load.requests_lost(session)?;
    Ok(Verdict::Passed)
}

fn pods_roll(session: &Session<'_>) -> Result<Verdict> {
    let shop = session.shop();
    let load = Load::begin(session)?;
    session.kubectl(&["-n", &shop, "rollout", "restart", "deployment/web"])?;
    session.rolled_out(&shop, "deployment/web")?;
    load.requests_lost(session)?;
    Ok(Verdict::Passed)
}

fn control_rolls(session: &Session<'_>) -> Result<Verdict> {
    let load = Load::begin(session)?;
    let control = crate::k8s_test::session::CONTROL;
    session.kubectl(&[
        "-n",
        control,
        "rollout",
        "restart",
        "deployment/nodemesh-control",
    ])?;
    session.rolled_out(control, "deployment/nodemesh-control")?;
    load.nothing_lost(session)?;
    Ok(Verdict::Passed)
}
