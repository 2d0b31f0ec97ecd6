//! `cargo xtask build`: the kernel programs, then every binary that embeds or drives them.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{ebpf, exec};

/// Builds everything, in the one profile that is used for all (release).
pub(crate) fn run(workspace: &Path) -> Result<()> {
    eprintln!("building the kernel programs");
    ebpf::build(workspace).context("building the kernel programs")?;
    eprintln!("building the binaries");
    let packages = ["mesh-agent", "mesh-control", "mesh-cli", "mesh-lab"];
    let mut cargo = exec::cargo(workspace);
    cargo.args(["build", "--release"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    exec::run(&mut cargo)
}
