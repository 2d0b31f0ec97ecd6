//! `cargo xtask test`: everything that has to hold before a change goes in.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mesh_lab::programs;

use crate::k8s_test::{self, K8sTestArgs};
use crate::manifests::{self, ManifestsArgs};
use crate::vm_test::{self, VmTestArgs};
use crate::{build, exec, setup};

/// What to run
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Leave out what needs root and a lab of network namespaces
    #[arg(long)]
    unit: bool,
    /// Only tests whose name contains this; fmt, clippy and deny are left out too
    filter: Option<String>,
}

/// Tests that run where a variable names what they need.
const GIVEN: [(&str, &str); 2] = [
    ("KUBEBUILDER_ASSETS", "real_cluster"),
    ("ZTUNNEL_BIN", "interop"),
];

/// What did not run, and why.
type Skipped = BTreeMap<String, String>;

/// Runs it all; the list of what was skipped comes last.
pub(crate) fn run(workspace: &Path, args: &TestArgs) -> Result<()> {
    let started = Instant::now();
    // Asked before the tests' build puts a new one in its place.
    let xtask = std::env::current_exe()?;
    let mut skipped = Skipped::new();
    if args.unit {
        let reason = "--unit was given".to_owned();
        skipped.insert("integration tests".to_owned(), reason);
    } else {
        check_privilege()?;
        step("programs", || programs::install(setup::TEST))?;
    }
    // mesh-agent embeds the kernel programs, so they come first.
    step("build", || build::with_tests(workspace))?;
    if let Some(filter) = &args.filter {
        skipped.insert(
            "fmt, clippy, deny, manifests".to_owned(),
            format!("only {filter:?}"),
        );
    } else {
        step("fmt", || {
            exec::run(exec::cargo(workspace).args(["fmt", "--all", "--check"]))
        })?;
        step("clippy", || clippy(workspace))?;
        step("deny", || deny(workspace, &mut skipped))?;
        step("manifests", || {
            manifests::run(workspace, &ManifestsArgs::check())
        })?;
    }
    step("tests", || tests(workspace, args, &mut skipped))?;
    if !args.unit && args.filter.is_none() {
        step("demo", || {
            exec::run(Command::new(&xtask).args(["demo", "--check", "--no-build"]))
        })?;
        step("bench", || {
            let short = ["bench", "--short", "--no-build"];
            exec::run(Command::new(&xtask).args(short))
        })?;
        step("bench instructions", || {
            exec::run(Command::new(&xtask).args(["bench", "instructions"]))
        })?;
        step("bench control", || {
            let short = ["bench", "control", "--short", "--no-build"];
            exec::run(Command::new(&xtask).args(short))
        })?;
        step("bench isolation", || {
            let short = ["bench", "isolation", "--short", "--no-build"];
            exec::run(Command::new(&xtask).args(short))
        })?;
        step("vm-test", || vm_test::run(workspace, &VmTestArgs::all()))?;
        step("k8s-test", || {
            k8s_test::run(workspace, &K8sTestArgs::without_cluster())
        })?;
        let cases = k8s_test::names().map(|name| (name, k8s_test::NO_CLUSTER.to_owned()));
        skipped.extend(cases);
    }
    println!("\nall passed in {} s", started.elapsed().as_secs());
    println!("skipped: {}", skipped.len());
    for (what, why) in &skipped {
        println!("  {what}: {why}");
    }
    Ok(())
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("\n== {name}");
    run().with_context(|| format!("step `{name}`"))
}

/// Tests that can't have what they need would pass by not running.
fn check_privilege() -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(
        root,
        "integration tests make network namespaces and load eBPF: run this as root, or only the \
         rest with `cargo xtask test --unit`"
    );
    mesh_lab::cgroup::mount_point().map(drop)
}

fn clippy(workspace: &Path) -> Result<()> {
    let mut cargo = exec::cargo(workspace);
    cargo.args([
        "clippy",
        "--release",
        "--workspace",
        "--exclude",
        "mesh-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    exec::run(&mut cargo)
}

/// Licences, bans and sources need nothing from outside; advisories need their database.
fn deny(workspace: &Path, skipped: &mut Skipped) -> Result<()> {
    let deny = setup::cargo_tool(workspace, "cargo-deny")?;
    let check = |what: &[&str]| {
        let mut command = Command::new(&deny);
        command
            .current_dir(workspace)
            .args(["--log-level", "error", "check"])
            .args(what);
        command
    };
    exec::run(&mut check(&["bans", "licenses", "sources"]))?;
    let output = check(&["advisories"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(());
    }
    if said.contains("failed to fetch advisory database") {
        let why = "the advisory database can't be reached".to_owned();
        skipped.insert("deny advisories".to_owned(), why);
        return Ok(());
    }
    bail!("{said}");
}

fn tests(workspace: &Path, args: &TestArgs, skipped: &mut Skipped) -> Result<()> {
    let nextest = setup::cargo_tool(workspace, "cargo-nextest")?;
    let mut command = Command::new(nextest);
    command.current_dir(workspace);
    command.args(["nextest", "run", "--cargo-profile", "release"]);
    if args.unit {
        command.args(["-E", "not (package(mesh-lab) & kind(test))"]);
    }
    command.args(&args.filter);
    exec::run(&mut command)?;
    let given = GIVEN
        .iter()
        .filter(|(variable, _)| args.filter.is_none() && std::env::var_os(variable).is_some());
    let given: Vec<&str> = given.map(|(_, binary)| *binary).collect();
    for binary in &given {
        let mut command = Command::new(setup::cargo_tool(workspace, "cargo-nextest")?);
        command.current_dir(workspace);
        command.args(["nextest", "run", "--cargo-profile", "release"]);
        command.args(["--run-ignored", "only", "-E"]);
        exec::run(command.arg(format!("binary({binary})")))?;
    }
    for name in ignored(workspace)? {
        if given.iter().any(|binary| name.contains(binary)) {
            continue;
        }
        let why = "marked #[ignore]; its reason stands there".to_owned();
        skipped.insert(name, why);
    }
    if args.filter.is_none() {
        exec::run(&mut build::apart(workspace, &["corpus", "simulation"]))?;
        // nextest runs no documentation tests.
        let mut cargo = exec::cargo(workspace);
        exec::run(cargo.args([
            "test",
            "--release",
            "--doc",
            "--workspace",
            "--exclude",
            "mesh-ebpf",
        ]))?;
    }
    Ok(())
}

fn ignored(workspace: &Path) -> Result<Vec<String>> {
    let nextest = setup::cargo_tool(workspace, "cargo-nextest")?;
    let mut command = Command::new(nextest);
    command.current_dir(workspace);
    command.args(["nextest", "list", "--cargo-profile", "release"]);
    command.args(["--run-ignored", "only", "--message-format", "oneline"]);
    let listed = exec::read(&mut command)?;
    Ok(listed.lines().map(str::to_owned).collect())
}
