//! A `WorkerBudget` on a pure cgroup v2: in force live, reported, and kept to by the kernel; and
//! a worker that refuses what it has no memory for, and so lives on.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::{Lab, call, manifest, wait};

use super::budgets::{
    Burners, CLIENT, OTHER, PORT, WEB, cpu_us, field, folder, in_cgroup, lab, until_served,
};
use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "budgets/cpu-max-holds",
        nodes: 1,
        kernel_args: "",
        timeout_s: 240,
        run: cpu_max,
    },
    Case {
        name: "budgets/a-worker-near-its-memory-refuses-and-lives-on",
        nodes: 1,
        kernel_args: "",
        timeout_s: 240,
        run: sheds,
    },
];

const MIB: u64 = 1 << 20;
/// How long a worker's CPU is measured.
const BURN: Duration = Duration::from_secs(3);

/// Sets a part of the budget of `shop/web`, and waits until a file of its cgroup says so.
fn budget(lab: &Lab, spec: &str, file: &Path, value: &str) -> Result<()> {
    let spec = format!("{{target: {{labels: {{app: web}}}}, {spec}}}");
    lab.write_manifest(
        "budget",
        &manifest::own("WorkerBudget", "shop", "web", &spec),
    )?;
    wait::until_true(&spec, wait::PATIENCE * 3, || {
        Ok(fs::read_to_string(file)?.trim() == value)
    })
}

/// A fifth of a CPU is what a worker gets that wants all of it, from the moment on that its budget
/// says so; which version enforces it is reported.
fn cpu_max(guest: &Guest) -> Result<()> {
    let (lab, _apps) = lab()?;
    until_served(&lab, lab.pod(WEB))?;
    let cgroup = folder(&lab, WEB)?;
    let burner = Burners::start(&cgroup, 1)?;
    budget(
        &lab,
        "cpuMaxMillicores: 200",
        &cgroup.join("cpu.max"),
        "20000 100000",
    )?;
    let (began, before) = (Instant::now(), cpu_us(&cgroup)?);
    thread::sleep(BURN);
    let (used, took) = (cpu_us(&cgroup)? - before, began.elapsed());
    guest.step(format!("{used} us of CPU in {took:?}"));
    // A period more than the share, at either end.
    let most = u64::try_from(took.as_micros())? / 5 + 2 * 20_000;
    ensure!(used <= most, "{used} us used, at most {most}");
    ensure!(field(&cgroup.join("cpu.stat"), "nr_throttled")? > 0);
    drop(burner);
    let status = lab.agent(0).pod_status(lab.pod(WEB))?;
    let by = ["cpu", "memory", "pids"].map(|part| format!("{part} by cgroup v2"));
    ensure!(status["budget"] == serde_json::json!(by), "{status}");
    ensure!(
        status["budget_unenforced"] == serde_json::json!([]),
        "{status}"
    );
    let listed = lab.agent(0).admin(&["pod", "list"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    ensure!(listed.contains(&by[0]), "{listed}");
    until_served(&lab, lab.pod(WEB))?;
    lab.finish()
}

/// Memory that a worker's cgroup is charged for, until this is dropped: a file on a file system
/// that has no disk, written by a process of that cgroup.
struct Ballast(PathBuf);

impl Ballast {
    fn fill(file: PathBuf, cgroup: &Path, up_to: u64) -> Result<Self> {
        let bytes = up_to.saturating_sub(used(cgroup)?);
        let script = format!("head -c {bytes} /dev/zero > {}", file.display());
        let ended = in_cgroup(cgroup, &script)?.wait()?;
        ensure!(ended.success(), "{script}: {ended}");
        Ok(Self(file))
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn used(cgroup: &Path) -> Result<u64> {
    let text = fs::read_to_string(cgroup.join("memory.current"))?;
    text.trim().parse().context("memory.current")
}

/// With 85 of 100 parts of its memory in use a worker refuses new flows, for that reason; what is
/// open goes on, so do the neighbours, and the kernel ends nobody. More memory is in force at
/// once; less than is in use is not, and is reported, until there is room.
fn sheds(guest: &Guest) -> Result<()> {
    let (lab, _apps) = lab()?;
    for key in [WEB, OTHER] {
        until_served(&lab, lab.pod(key))?;
    }
    let cgroup = folder(&lab, WEB)?;
    let max = cgroup.join("memory.max");
    let agent = lab.agent(0);
    let worker = agent.worker_pid(lab.pod(WEB))?;
    let address = (lab.pod(WEB).addresses()[0], PORT).into();
    let dial = || call::Open::dial(&lab.pod(CLIENT).netns, address);
    let mut open = dial().map_err(|called| anyhow::anyhow!("{called}"))?;
    budget(&lab, "memoryMaxMib: 128", &max, &(128 * MIB).to_string())?;
    let ballast = Ballast::fill(lab.folder().join("ballast"), &cgroup, 128 * MIB * 85 / 100)?;
    guest.step(format!(
        "{} KiB of 128 MiB are in use",
        used(&cgroup)? / 1024
    ));
    let refused = || agent.refused(lab.node(0), lab.pod(WEB), "memory_pressure");
    let called = call::tcp(&lab.pod(CLIENT).netns, address);
    ensure!(!called.served(), "{called}");
    ensure!(refused()? > 0, "{}", agent.metrics(lab.node(0))?);
    open.ping().context("what was open was cut")?;
    until_served(&lab, lab.pod(OTHER))?;

    budget(&lab, "memoryMaxMib: 256", &max, &(256 * MIB).to_string())?;
    until_served(&lab, lab.pod(WEB)).context("with more memory")?;
    guest.step("it serves with more memory");
    let unenforced = || -> Result<String> {
        Ok(agent.pod_status(lab.pod(WEB))?["budget_unenforced"].to_string())
    };
    budget(
        &lab,
        "memoryMaxMib: 64, cpuWeight: 200",
        &cgroup.join("cpu.weight"),
        "200",
    )?;
    wait::until_true("less than is in use to be reported", wait::PATIENCE, || {
        Ok(unenforced()?.contains("more is in use"))
    })?;
    ensure!(fs::read_to_string(&max)?.trim() == (256 * MIB).to_string());
    drop(ballast);
    wait::until_true("the limit to be set after all", wait::PATIENCE * 3, || {
        let in_force = fs::read_to_string(&max)?.trim() == (64 * MIB).to_string();
        Ok(in_force && unenforced()? == "[]")
    })?;
    guest.step("less memory is in force once there is room");

    let kills = field(&cgroup.join("memory.events"), "oom_kill ")?;
    ensure!(kills == 0, "the kernel has ended {kills}");
    ensure!(agent.worker_pid(lab.pod(WEB))? == worker, "it was replaced");
    until_served(&lab, lab.pod(WEB))?;
    lab.finish()
}
