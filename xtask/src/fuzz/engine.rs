//! libFuzzer: one program for each target, built with its instrumentation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::exec;

/// What libFuzzer wants to see of a program: its branches and what it compares.
const INSTRUMENTATION: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// An input that takes longer is a finding.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Memory a target may use, in MiB: more is a finding.
const MEMORY_MIB: u32 = 1024;
/// Longest input, in bytes.
const MAX_LEN: usize = 16 * 1024;

/// The programs, and where they work.
pub(super) struct Engine {
    /// `fuzz/`.
    folder: PathBuf,
    programs: PathBuf,
}

/// What came of fuzzing one target.
pub(super) struct Run {
    pub(super) executions: u64,
    pub(super) cpu_minutes: f64,
    /// Inputs that make it fail.
    pub(super) artifacts: Vec<PathBuf>,
}

/// Builds the targets' programs. The dependencies are the workspace's own versions.
pub(super) fn build(workspace: &Path, targets: &[&str]) -> Result<Engine> {
    let folder = workspace.join("fuzz");
    fs::copy(workspace.join("Cargo.lock"), folder.join("Cargo.lock"))
        .context("copying Cargo.lock")?;
    eprintln!("building the fuzz targets");
    let host = host(workspace)?;
    let mut cargo = exec::cargo(&folder);
    // With a target named, build scripts and macros are built without the flags.
    cargo.args(["build", "--release", "--target", &host]);
    cargo.arg("--target-dir").arg(folder.join("target"));
    for target in targets {
        cargo.args(["--bin", target]);
    }
    cargo.env("RUSTFLAGS", INSTRUMENTATION.join(" "));
    exec::run(&mut cargo)?;
    let programs = folder.join("target").join(host).join("release");
    Ok(Engine { folder, programs })
}

fn host(workspace: &Path) -> Result<String> {
    let mut rustc = Command::new("rustc");
    let version = exec::read(rustc.current_dir(workspace).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names no host")
}

impl Engine {
    /// The corpus that is kept in the repository.
    pub(super) fn kept(&self, target: &str) -> PathBuf {
        self.folder.join("corpus").join(target)
    }

    /// All that was ever of interest, on this machine.
    pub(super) fn working(&self, target: &str) -> PathBuf {
        self.folder.join("target/corpus").join(target)
    }

    /// A run of libFuzzer, with limits.
    pub(super) fn command(&self, target: &str) -> Command {
        let mut command = Command::new(self.programs.join(target));
        command.current_dir(&self.folder).args([
            format!("-timeout={}", TIMEOUT.as_secs()),
            format!("-rss_limit_mb={MEMORY_MIB}"),
            format!("-max_len={MAX_LEN}"),
        ]);
        command
    }

    /// Fuzzes one target, from the corpus that is kept and what was found here before.
    pub(super) fn fuzz(&self, target: &str, minutes: f64) -> Result<Run> {
        let artifacts = self.folder.join("artifacts").join(target);
        let (kept, working) = (self.kept(target), self.working(target));
        for folder in [&artifacts, &kept, &working] {
            fs::create_dir_all(folder)?;
        }
        let mut run = Run {
            executions: 0,
            cpu_minutes: 0.0,
            artifacts: Vec::new(),
        };
        // Time of the wall is not the target's where others run too.
        while run.cpu_minutes < minutes {
            let left_s = ((minutes - run.cpu_minutes) * 60.0).ceil();
            let before = cpu_of_children()?;
            let mut command = self.command(target);
            command.arg(format!("-max_total_time={left_s}"));
            command.arg(format!("-artifact_prefix={}/", artifacts.display()));
            command.arg("-print_final_stats=1").arg(&working).arg(&kept);
            let output = command.stderr(Stdio::piped()).stdout(Stdio::null());
            let output = output
                .output()
                .with_context(|| format!("running {target}"))?;
            run.cpu_minutes += (cpu_of_children()? - before).as_secs_f64() / 60.0;
            let said = String::from_utf8_lossy(&output.stderr);
            let executions = statistic(&said, "stat::number_of_executed_units:");
            run.executions += executions.unwrap_or_default();
            if !output.status.success() {
                run.artifacts = files(&artifacts)?;
                ensure!(
                    !run.artifacts.is_empty(),
                    "{target} failed before it read anything:\n{said}"
                );
                eprintln!("{}", last_lines(&said, 40));
                break;
            }
        }
        Ok(run)
    }
}

fn cpu_of_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(us.unsigned_abs()))
}

fn statistic(said: &str, name: &str) -> Option<u64> {
    let value = said.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The files of a folder, sorted.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}
