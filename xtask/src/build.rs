//! `cargo xtask build`: the kernel programs, then every binary that embeds or drives them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{ebpf, exec};

/// For an agent that is measured or shipped. Cargo gives a library all that the programs of one
/// build ask of it; the agent would write each event for the `log` crate as well, as control's
/// client of Kubernetes wants it, and every worker would hold the tables for that.
pub(crate) const AGENT_ALONE: [&str; 2] = ["--package", "mesh-agent"];

/// Builds everything, in the one profile that is used for all (release).
pub(crate) fn run(workspace: &Path) -> Result<()> {
    kernel_programs(workspace)?;
    eprintln!("building the binaries");
    exec::run(exec::cargo(workspace).args(["build", "--release", "--bins"]))?;
    next_agent(workspace, &[])
}

/// Builds everything, and the agent once more as it is shipped (profile `dist`), for it to be
/// measured. Returns the folder with that agent and, as they are tested, all other programs.
pub(crate) fn measured(workspace: &Path) -> Result<PathBuf> {
    run(workspace)?;
    eprintln!("building the agent as it is shipped");
    let mut agent = exec::cargo(workspace);
    agent.args(["build", "--profile", "dist", "--bin", "mesh-agent"]);
    exec::run(agent.args(AGENT_ALONE))?;
    let [tested, shipped] =
        ["release", "dist"].map(|profile| workspace.join("target").join(profile));
    for program in ["mesh-control", "meshctl", "mesh-lab-app", "mesh-lab-load"] {
        fs::copy(tested.join(program), shipped.join(program))
            .with_context(|| format!("copying {program} to {}", shipped.display()))?;
    }
    Ok(shipped)
}

/// The folder that [`measured`] has filled before.
pub(crate) fn measured_before(workspace: &Path) -> Result<PathBuf> {
    let shipped = workspace.join("target/dist");
    ensure!(
        shipped.join("mesh-lab-load").is_file(),
        "nothing was built to be measured in {}: leave --no-build out once",
        shipped.display()
    );
    Ok(shipped)
}

/// Builds everything with all tests, in one go: cargo unites the features of what it builds
/// together, so that binaries that are built apart from tests would be built twice.
pub(crate) fn with_tests(workspace: &Path) -> Result<()> {
    kernel_programs(workspace)?;
    eprintln!("building binaries and tests");
    exec::run(exec::cargo(workspace).args(["build", "--release", "--bins", "--tests"]))?;
    next_agent(workspace, BESIDE_TESTS)
}

/// Tests of `mesh-fuzz`: the replay of what fuzzing has kept (`corpus`), and the `simulation`. They
/// are apart from all else, for private parts of mesh-agent are open to them, and the programs are
/// not to have that. All packages are named for their dependencies' features: those are then as in
/// the other builds.
pub(crate) fn apart(workspace: &Path, tests: &[&str]) -> Command {
    let mut cargo = exec::cargo(workspace);
    cargo.args(["test", "--release", "--workspace", "--exclude", "mesh-ebpf"]);
    cargo.args(tests.iter().flat_map(|test| ["--test", *test]));
    cargo
}

/// Builds the kernel programs, which mesh-agent embeds.
pub(crate) fn kernel_programs(workspace: &Path) -> Result<()> {
    eprintln!("building the kernel programs");
    for build in [ebpf::build, ebpf::build_next] {
        let object = build(workspace).context("building the kernel programs")?;
        eprintln!("{}", object.display());
    }
    Ok(())
}

/// Some test, for [`next_agent`] to be built with the features that dependencies have in a build
/// with tests.
pub(crate) const BESIDE_TESTS: &[&str] = &["--test", "reasons"];

/// Builds an agent of the next ABI version: take-overs need two.
pub(crate) fn next_agent(workspace: &Path, beside: &[&str]) -> Result<()> {
    eprintln!("building mesh-agent-abi-next");
    let mut cargo = exec::cargo(workspace);
    cargo.args(["build", "--release", "--bin", "mesh-agent-abi-next"]);
    cargo.args(["--features", "mesh-agent/abi-next"]);
    exec::run(cargo.args(beside))
}
