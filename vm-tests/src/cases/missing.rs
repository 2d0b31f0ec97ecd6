//! Kernels that lack something: what can be done without is done without and said; what can't
//! is refused at start, by name.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::budgets;
use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "missing/the-kernel-is-asked",
        nodes: 1,
        kernel_args: "",
        timeout_s: 120,
        run: asked,
    },
    Case {
        name: "missing/landlock-and-the-memory-controller",
        nodes: 1,
        kernel_args: "lsm=capability cgroup_disable=memory",
        timeout_s: 240,
        run: without_landlock,
    },
    Case {
        name: "missing/ipv6",
        nodes: 1,
        kernel_args: "ipv6.disable=1",
        timeout_s: 240,
        run: without_ipv6,
    },
];

/// What `mesh-agent check` says, and whether the kernel will do.
fn check() -> Result<(bool, Value)> {
    let output = Command::new("mesh-agent")
        .args(["check", "--json"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())?;
    Ok((output.status.success(), answer))
}

/// Names of what is missing, of one need.
fn missing(answer: &Value, need: &str) -> Result<Vec<String>> {
    let features = answer["features"].as_array().context("features")?;
    let missing = features
        .iter()
        .filter(|f| f["need"] == need && !f["lack"].is_null());
    let names = missing.map(|f| f["name"].as_str().unwrap_or_default().to_owned());
    Ok(names.collect())
}

/// A kernel either has all that is required; or `run` refuses it, says
/// what it lacks and what is needed, and attaches nothing.
fn asked(guest: &Guest) -> Result<()> {
    let (will_do, answer) = check()?;
    let (required, optional) = (missing(&answer, "required")?, missing(&answer, "optional")?);
    guest.step(format!("missing: {required:?}; done without: {optional:?}"));
    if will_do {
        ensure!(required.is_empty(), "it will do without {required:?}");
        return Ok(());
    }
    let refused = refused_start()?;
    guest.step(refused.clone());
    for name in &required {
        ensure!(
            refused.contains(name.as_str()),
            "{name} is not named: {refused}"
        );
    }
    ensure!(refused.contains("Linux 6.1 or later"), "{refused}");
    for folder in ["/sys/fs/bpf", "/sys/fs/cgroup"] {
        let left = fs::read_dir(folder)?.filter_map(Result::ok);
        let mut left = left.filter(|e| e.file_name().to_string_lossy().starts_with("nodemesh"));
        ensure!(left.next().is_none(), "something is left in {folder}");
    }
    Ok(())
}

/// `mesh-agent run`, with a control that is not there.
fn start() -> Result<Child> {
    let root = "/tmp/root.pem";
    // Guests have none of openssl's own.
    fs::write(
        "/tmp/openssl.cnf",
        "[req]\ndistinguished_name=name\n[name]\n",
    )?;
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args([
            "-config",
            "/tmp/openssl.cnf",
            "-subj",
            "/CN=root",
            "-keyout",
            "/tmp/root.key",
            "-out",
            root,
        ])
        .output()?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "openssl: {said}");
    fs::write("/tmp/token", "none")?;
    let mut agent = Command::new("mesh-agent");
    agent
        .args(["run", "--node", "n", "--control", "https://127.0.0.1:9"])
        .args(["--trust-bundle", root, "--join-token-file", "/tmp/token"])
        .stderr(Stdio::piped());
    Ok(agent.spawn()?)
}

/// What `mesh-agent run` says when it does not start.
fn refused_start() -> Result<String> {
    let output = start()?.wait_with_output()?;
    ensure!(!output.status.success(), "it started");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The mesh works, and its agent says what it does without.
fn works_without(guest: &Guest, names: &[&str]) -> Result<()> {
    let (will_do, answer) = check()?;
    ensure!(will_do, "{answer}");
    let optional = missing(&answer, "optional")?;
    for name in names {
        ensure!(
            optional.iter().any(|o| o == name),
            "{name} is not missing: {optional:?}"
        );
    }
    let (lab, _apps) = budgets::lab()?;
    budgets::until_served(&lab, lab.pod("shop/web"))?;
    guest.step("a call was served");
    let log = fs::read_to_string(lab.agent(0).daemon.log())?;
    for name in names {
        let said = format!("this kernel has no {name}:");
        ensure!(log.contains(&said), "not said: {said}\n{log}");
    }
    lab.finish()
}

fn without_landlock(guest: &Guest) -> Result<()> {
    works_without(guest, &["landlock", "memory controller"])
}

/// The agent starts, attaches everything and says so. (The lab's own network wants IPv6.)
fn without_ipv6(guest: &Guest) -> Result<()> {
    let (will_do, answer) = check()?;
    ensure!(will_do, "{answer}");
    ensure!(
        missing(&answer, "optional")?.contains(&"IPv6".to_owned()),
        "{answer}"
    );
    let mut agent = start()?;
    let mut lines = BufReader::new(agent.stderr.take().context("its log")?).lines();
    let mut said = Vec::new();
    for line in lines.by_ref() {
        said.push(line?);
        if said
            .last()
            .is_some_and(|line| line.contains("supervisor is up"))
        {
            break;
        }
    }
    let said = said.join("\n");
    ensure!(
        said.contains("supervisor is up"),
        "it did not start: {said}"
    );
    ensure!(
        said.contains("this kernel has no IPv6:"),
        "not said: {said}"
    );
    guest.step("the supervisor is up");
    kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM)?;
    ensure!(agent.wait()?.success(), "it did not end in order");
    let unloaded = Command::new("mesh-agent").arg("unload").output()?;
    let said = String::from_utf8_lossy(&unloaded.stderr);
    ensure!(unloaded.status.success(), "unload: {said}");
    Ok(())
}
