//! How much of the code the corpora reach: the replaying test, built so that it counts.
//!
//! Only this workspace's own crates count, so that nothing else is built again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Facts;
use crate::{build, exec};

/// What of a target's sources its corpus reaches.
#[derive(Clone, Copy, Default)]
pub(super) struct Covered {
    pub(super) regions: Share,
    pub(super) lines: Share,
}

/// So many of so many.
#[derive(Clone, Copy, Default)]
pub(super) struct Share {
    pub(super) reached: u64,
    pub(super) all: u64,
}

/// Measures each target's corpus over its own sources.
pub(super) fn measure(
    workspace: &Path,
    targets: &BTreeMap<String, Facts>,
) -> Result<BTreeMap<String, Covered>> {
    let tools = Tools::find(workspace)?;
    let folder = workspace.join("target/fuzz-coverage");
    fs::create_dir_all(&folder)?;
    eprintln!("building the replay with coverage");
    let test = build(workspace, &folder)?;
    let mut covered = BTreeMap::new();
    for (target, facts) in targets {
        let raw = folder.join(format!("{target}.profraw"));
        let data = folder.join(format!("{target}.profdata"));
        let mut replay = Command::new(&test);
        replay
            .args(["--exact", target])
            .env("LLVM_PROFILE_FILE", &raw);
        exec::read(replay.current_dir(workspace.join("mesh-fuzz")))?;
        let mut merge = Command::new(&tools.profdata);
        exec::read(merge.args(["merge", "-sparse", "-o"]).args([&data, &raw]))?;
        let mut export = Command::new(&tools.cov);
        export.args(["export", "-summary-only", "-instr-profile"]);
        export.arg(&data).arg(&test);
        export.args(facts.sources.iter().map(|path| workspace.join(path)));
        let report: Value = serde_json::from_str(&exec::read(&mut export)?)?;
        let totals = &report["data"][0]["totals"];
        covered.insert(
            target.clone(),
            Covered {
                regions: share(&totals["regions"])?,
                lines: share(&totals["lines"])?,
            },
        );
    }
    Ok(covered)
}

fn share(value: &Value) -> Result<Share> {
    let number = |name: &str| value[name].as_u64().context("llvm-cov said no number");
    Ok(Share {
        reached: number("covered")?,
        all: number("count")?,
    })
}

/// Builds the replaying test with counters in the workspace's own crates; its path.
fn build(workspace: &Path, folder: &Path) -> Result<PathBuf> {
    let wrapper = folder.join("rustc");
    // Cargo calls it with rustc and its arguments, for members of the workspace alone.
    fs::write(&wrapper, "#!/bin/sh\nexec \"$@\" -Cinstrument-coverage\n")?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let mut cargo = build::apart(workspace, &["corpus"]);
    cargo.arg("--no-run");
    cargo.args(["--message-format", "json-render-diagnostics"]);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
    // Build scripts count as well, which nobody reads.
    cargo.env("LLVM_PROFILE_FILE", folder.join("build-%p.profraw"));
    let messages = exec::read(&mut cargo)?;
    let built = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let test = built
        .filter(|message: &Value| message["target"]["name"] == "corpus")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    test.context("cargo named no test program")
}

/// LLVM's tools, of the version that rustc has.
struct Tools {
    profdata: PathBuf,
    cov: PathBuf,
}

impl Tools {
    fn find(workspace: &Path) -> Result<Self> {
        let mut rustc = Command::new("rustc");
        let version = exec::read(rustc.current_dir(workspace).arg("-vV"))?;
        let llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "));
        let llvm = llvm.context("rustc names no version of LLVM")?;
        let major = llvm.split('.').next().unwrap_or(llvm);
        let mut rustc = Command::new("rustc");
        rustc
            .current_dir(workspace)
            .args(["--print", "target-libdir"]);
        let library = PathBuf::from(exec::read(&mut rustc)?.trim());
        let folders = [
            library.with_file_name("bin"),
            PathBuf::from(format!("/usr/lib/llvm-{major}/bin")),
        ];
        for folder in &folders {
            let (profdata, cov) = (folder.join("llvm-profdata"), folder.join("llvm-cov"));
            if profdata.is_file() && cov.is_file() {
                return Ok(Self { profdata, cov });
            }
        }
        bail!(
            "no llvm-cov of LLVM {major} in {folders:?}: `rustup component add llvm-tools` or \
             `apt-get install llvm-{major}` brings it"
        )
    }
}
