//! Steps about traffic: what works, what is seen of it, what is refused.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::{Agent, Ran};

use super::narrator::Narrator;
use super::stage::{BATCH, CACHE, FRONTEND, REPORTS, Stage, WEB};

/// curl to a service and redis-cli to a pod, on the other node.
pub(crate) fn request(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let (asked, secret) = (stage.nonce()?, stage.nonce()?);
    let lab = &stage.lab;
    let frontend = lab.pod(FRONTEND);
    let url = format!("http://{}/", lab.service(WEB)[0]);
    tell.say(&format!("in {FRONTEND}: curl -H 'X-Nonce: {asked}' {url}"));
    let curl = frontend
        .command("curl")
        .args(["-sS", "--max-time", "10", "-H"]);
    let answer = curl
        .arg(format!("X-Nonce: {asked}"))
        .arg(&url)
        .output()?
        .ok()?;
    tell.show("curl", &answer);
    ensure!(answer == "hello from web\n", "curl got {answer:?}");
    let seen = stage.apps[0].wait_line("GET /")?;
    tell.show("nginx", &seen);
    let caller = frontend.v4();
    ensure!(
        seen.starts_with(&format!("{caller}:")),
        "nginx saw {seen}, not {caller}"
    );
    tell.holds(&format!("nginx saw the caller's own address, {caller}"));

    let cache = lab.pod(CACHE).v6();
    tell.say(&format!(
        "in {FRONTEND}: redis-cli -h {cache} SET secret {secret}"
    ));
    let redis = frontend
        .command("redis-cli")
        .args(["-h", &cache.to_string()]);
    let set = redis.args(["SET", "secret", &secret]).output()?.ok()?;
    tell.show("redis-cli", &set);
    let redis = frontend
        .command("redis-cli")
        .args(["-h", &cache.to_string()]);
    let got = redis.args(["GET", "secret"]).output()?.ok()?;
    ensure!(got.trim() == secret, "redis kept {got}");
    tell.holds("and redis over IPv6 answers what was put into it");

    for (node, peer) in [(0, WEB), (1, FRONTEND), (0, CACHE)] {
        let identity = lab.pod(peer).identity();
        let agent = lab.agent(node);
        let line = tunnel_line(agent, &identity)?;
        tell.show(lab.node(node).name(), &line);
    }
    tell.holds("each side's worker saw the other's certificate and names the identity in it");
    Ok(())
}

/// The agent's line about a tunnel whose peer proved to be `identity`.
fn tunnel_line(agent: &Agent, identity: &str) -> Result<String> {
    mesh_lab::wait::until(
        "a tunnel in the agent's log",
        mesh_lab::wait::PATIENCE,
        || {
            let log = fs::read_to_string(agent.daemon.log())?;
            let found = log.lines().find(|line| {
                line.contains("tunnel") && line.contains(&format!("peer_identity={identity}"))
            });
            Ok(found.map(str::to_owned))
        },
    )
    .with_context(|| format!("no tunnel with {identity}"))
}

/// The capture that ran since before the mesh started.
pub(crate) fn wire(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let capture = stage.capture.take().context("the capture runs")?;
    let recording = capture.stop()?;
    let lab = &stage.lab;
    tell.say(&format!(
        "{} frames passed node-a's port since before the mesh started",
        recording.frames.len()
    ));
    let (a, b) = (lab.node(0), lab.node(1));
    let streams = recording.streams();
    let between = streams.between(|ip| a.owns(ip), |ip| b.owns(ip));
    let summary = between.assert_all_tls()?;
    for (port, connections) in &summary.ports {
        tell.say(&format!("to port {port}: {connections} connections"));
    }
    for (handshake, connections) in &summary.handshakes {
        tell.say(&format!("{handshake}: {connections} connections"));
    }
    tell.holds(&format!(
        "all {} bytes of TCP between the nodes are TLS records",
        summary.bytes
    ));
    for nonce in &stage.nonces {
        ensure!(
            !recording.contains(nonce.as_bytes()),
            "{nonce} is on the wire"
        );
    }
    tell.holds("what curl and redis-cli sent is in none of them");
    Ok(())
}

/// Plain TCP from a host that is no node, and from a pod that is not enrolled.
pub(crate) fn outside_caller(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let lab = &stage.lab;
    let before = refusals(stage, 1, "inbound_plaintext")?;
    let served = stage.apps[0].stdout().lines().count();
    let url = format!("http://{}:8080/", lab.pod(WEB).v4());
    tell.say(&format!("on a host outside, and in {BATCH}: curl {url}"));
    let outside = lab.outside().netns.command("curl");
    let outside = output(outside, &["-sS", "--max-time", "5", &url])?;
    tell.show("outside", outside.stderr.trim());
    ensure!(!outside.status.success(), "the host outside was served");
    let curl = lab.pod(BATCH).command("curl");
    let batch = curl.args(["-sS", "--max-time", "5", &url]).output()?;
    tell.show(BATCH, batch.stderr.trim());
    ensure!(!batch.status.success(), "{BATCH} was served");
    ensure!(
        stage.apps[0].stdout().lines().count() == served,
        "the request reached nginx"
    );
    refusal_shown(stage, tell, 1, "inbound_plaintext", before)?;
    tell.holds("both were refused before nginx saw a byte, counted, and the log says why");

    let url = format!("http://{}/", lab.pod(REPORTS).v4());
    let curl = lab.pod(BATCH).command("curl");
    let answer = curl.args(["-sS", "--max-time", "5", &url]).output()?.ok()?;
    ensure!(answer == "hello from reports\n", "{BATCH} got {answer:?}");
    tell.holds("between pods that are not enrolled nothing has changed");
    Ok(())
}

/// An address that discovery does not know, and a pod that is not enrolled.
pub(crate) fn unknown_destination(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let reports = stage.lab.pod(REPORTS).v4().to_string();
    for (to, reason) in [
        ("198.51.100.7", "destination_unknown"),
        (reports.as_str(), "destination_not_enrolled"),
    ] {
        let before = refusals(stage, 0, reason)?;
        tell.say(&format!("in {FRONTEND}: curl http://{to}/"));
        let curl = stage.lab.pod(FRONTEND).command("curl");
        let url = format!("http://{to}/");
        let ran = curl.args(["-sS", "--max-time", "5", &url]).output()?;
        tell.show("curl", ran.stderr.trim());
        ensure!(!ran.status.success(), "curl was served: {}", ran.stdout);
        refusal_shown(stage, tell, 0, reason, before)?;
    }
    tell.holds("nothing leaves the pod for where the mesh can't vouch for the other end");
    Ok(())
}

/// All refusals for a reason that a node's agent has counted.
fn refusals(stage: &Stage, node: usize, reason: &str) -> Result<f64> {
    let lab = &stage.lab;
    let metrics = lab.agent(node).metrics(lab.node(node))?;
    let series = metrics
        .lines()
        .filter(|line| line.contains(&format!("\"{reason}\"")));
    let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum())
}

fn refusal_shown(
    stage: &Stage,
    tell: &Narrator,
    node: usize,
    reason: &str,
    before: f64,
) -> Result<()> {
    let line = stage.lab.agent(node).daemon.wait_log(reason)?;
    tell.show(stage.lab.node(node).name(), &line);
    let counted = mesh_lab::wait::until(
        "the refusal to be counted",
        mesh_lab::wait::PATIENCE,
        || {
            let now = refusals(stage, node, reason)?;
            Ok((now > before).then_some(now - before))
        },
    )?;
    tell.say(&format!("counted as {reason}: {counted} more"));
    Ok(())
}

fn output(mut command: std::process::Command, arguments: &[&str]) -> Result<Ran> {
    let Ok(output) = command.args(arguments).output() else {
        bail!("starting {}", command.get_program().display());
    };
    Ok(Ran {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
