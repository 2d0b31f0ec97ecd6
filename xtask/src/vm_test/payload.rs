//! What every guest carries: the mesh's binaries, test binaries, programs of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_vm_tests::Suite;
use mesh_vm_tests::suite::SUITES;

use super::initramfs::Archive;
use crate::{build, exec};

/// Of this workspace.
const BINARIES: &[&str] = &[
    "mesh-vm-guest",
    "mesh-agent",
    "mesh-agent-abi-next",
    "mesh-control",
    "meshctl",
    "mesh-lab-app",
    "nodemesh-cni",
];
/// Of this machine.
const PROGRAMS: &[&str] = &[
    "kmod", "busybox", "ip", "tc", "ss", "nft", "curl", "nginx", "openssl",
];

/// Of this machine, for a container runtime: it, what it starts containers with, what the lab makes its
/// image with, and the plugins of the pods' network.
const RUNTIME: &[&str] = &[
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "tar",
    "sha256sum",
    // iproute2 has a `bridge` too.
    "/usr/lib/cni/bridge",
    "/usr/lib/cni/host-local",
    "/usr/lib/cni/loopback",
];

/// Puts what a container runtime takes into an archive.
pub(super) fn add_runtime(archive: &mut Archive) -> Result<()> {
    // Which it copies into pods.
    archive.text("etc/resolv.conf", "");
    RUNTIME
        .iter()
        .try_for_each(|name| archive.system_program(name))
}

/// The files.
pub(super) struct Payload {
    /// Place in the guest → place here.
    programs: BTreeMap<String, PathBuf>,
    suites: BTreeMap<&'static str, PathBuf>,
}

impl Payload {
    /// Builds what isn't, and strips it: the guests' memory is their disk.
    pub(super) fn build(workspace: &Path, no_build: bool) -> Result<Self> {
        if !no_build {
            build::kernel_programs(workspace)?;
            eprintln!("building the binaries and the tests that guests run");
        }
        let built = test_binaries(workspace)?;
        if !no_build {
            build::next_agent(workspace, build::BESIDE_TESTS)?;
        }
        let folder = workspace.join("target/vm/payload");
        fs::create_dir_all(&folder)?;
        let mut programs = BTreeMap::new();
        programs.insert("init".to_owned(), init(workspace)?);
        for name in BINARIES {
            let binary = mesh_lab::programs::mesh_binary(name)?;
            programs.insert(
                format!("usr/bin/{name}"),
                strip(&binary, &folder.join(name))?,
            );
        }
        let mut suites = BTreeMap::new();
        for suite in SUITES {
            let key = (suite.package.to_owned(), suite.target.to_owned());
            let test = built
                .get(&key)
                .with_context(|| format!("{} has no test {}", suite.package, suite.target))?;
            let stripped = strip(test, &folder.join(format!("suite-{}", suite.name)))?;
            programs.insert(format!("suites/{}", suite.name), stripped.clone());
            suites.insert(suite.name, stripped);
        }
        Ok(Self { programs, suites })
    }

    /// Puts everything into an archive.
    pub(super) fn add_to(&self, archive: &mut Archive) -> Result<()> {
        for (at, from) in &self.programs {
            archive.program(at, from)?;
        }
        PROGRAMS
            .iter()
            .try_for_each(|name| archive.system_program(name))
    }

    /// Names of a suite's tests. Those that are marked `#[ignore]` are for people.
    pub(super) fn tests_of(&self, suite: &Suite) -> Result<Vec<String>> {
        let binary = &self.suites[suite.name];
        let list = |which: &[&str]| -> Result<BTreeSet<String>> {
            let mut command = Command::new(binary);
            let listed = exec::read(command.args(["--list", "--format", "terse"]).args(which))?;
            let tests = listed
                .lines()
                .filter_map(|line| line.strip_suffix(": test"));
            Ok(tests.map(str::to_owned).collect())
        };
        let ignored = list(&["--ignored"])?;
        let all = list(&[])?.into_iter();
        Ok(all.filter(|test| !ignored.contains(test)).collect())
    }
}

/// Process 1, static; in a target folder of its own, since its flags are its own.
fn init(workspace: &Path) -> Result<PathBuf> {
    let target = workspace.join("target/vm/init");
    let mut cargo = exec::cargo(workspace);
    cargo.args([
        "rustc",
        "--release",
        "--quiet",
        "--package",
        "mesh-vm-init",
        "--target-dir",
    ]);
    cargo.arg(&target);
    cargo.args(["--", "-C", "target-feature=+crt-static"]);
    exec::run(&mut cargo)?;
    strip(
        &target.join("release/mesh-vm-init"),
        &workspace.join("target/vm/payload/init"),
    )
}

fn strip(from: &Path, to: &Path) -> Result<PathBuf> {
    exec::read(Command::new("strip").arg("-o").arg(to).arg(from))?;
    Ok(to.to_owned())
}

/// Builds the binaries, and the suites' test executables: these, by package and target. Where
/// `cargo xtask test` has built everything, this builds nothing.
fn test_binaries(workspace: &Path) -> Result<BTreeMap<(String, String), PathBuf>> {
    let mut cargo = exec::cargo(workspace);
    cargo.args(["build", "--release", "--bins", "--quiet"]);
    for suite in SUITES {
        cargo.args(["--test", suite.target]);
    }
    cargo.args(["--message-format", "json-render-diagnostics"]);
    // The compiler's own words go to the terminal.
    let output = cargo.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "building: {}", output.status);
    let listed = String::from_utf8(output.stdout)?;
    let mut found = BTreeMap::new();
    for line in listed.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages")?;
        let (Some(executable), Some(target)) = (
            message["executable"].as_str(),
            message["target"]["name"].as_str(),
        ) else {
            continue;
        };
        if message["target"]["kind"][0] != "test" {
            continue;
        }
        // The manifest lies in the package's folder, whose `Cargo.toml` names it.
        let manifest = message["manifest_path"].as_str().unwrap_or_default();
        let text = fs::read_to_string(manifest).unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("name = "));
        let name = name.unwrap_or_default().trim_matches('"').to_owned();
        found.insert((name, target.to_owned()), PathBuf::from(executable));
    }
    Ok(found)
}
