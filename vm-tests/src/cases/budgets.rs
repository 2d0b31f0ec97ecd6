//! Budgets of workers, on a pure cgroup v2 with its controllers: each worker's share of the CPU,
//! its memory, its processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{App, Lab, Plan, Pod, PodSpec, call, wait};

use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "budgets/memory-max-ends-one-worker-only",
        nodes: 1,
        kernel_args: "",
        timeout_s: 240,
        run: memory_max,
    },
    Case {
        name: "budgets/a-worker-that-burns-cpu-gets-its-share",
        nodes: 1,
        kernel_args: "",
        timeout_s: 240,
        run: cpu_weight,
    },
];

pub(super) const CLIENT: &str = "shop/client";
pub(super) const WEB: &str = "shop/web";
pub(super) const OTHER: &str = "shop/other";
pub(super) const PORT: u16 = 7000;
/// How long two workers' shares of the CPU are compared.
const BURN: Duration = Duration::from_secs(4);
/// Processes of the one that burns more than it is given.
const BURNERS: usize = 4;
/// More than a worker's cgroup takes (`pids.max` is 32).
const TOO_MANY: u64 = 40;

/// One node with three pods in the mesh; two of them serve.
pub(super) fn lab() -> Result<(Lab, Vec<App>)> {
    let plan = Plan::nodes(1)
        .enrolled("shop")
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "web"))
        .pod(PodSpec::new("shop", "other"))
        // Workers are compared before and after: none is replaced that need not be.
        .agent_option("--roll", "manual");
    let lab = Lab::with_mesh(plan)?;
    let apps = [WEB, OTHER].map(|key| {
        let pod = lab.pod(key);
        let serve = pod.command("mesh-lab-app");
        let app = serve.args(["serve", &PORT.to_string()]).spawn()?;
        pod.wait_listening(PORT)?;
        Ok(app)
    });
    let apps = apps.into_iter().collect::<Result<_>>()?;
    Ok((lab, apps))
}

/// Waits until the client's calls to a pod are served, by way of both workers.
pub(super) fn until_served(lab: &Lab, to: &Pod) -> Result<()> {
    let address = (to.addresses()[0], PORT).into();
    wait::until(
        &format!("{} to be reached", to.key()),
        wait::PATIENCE,
        || {
            let called = call::tcp(&lab.pod(CLIENT).netns, address);
            ensure!(called.served(), "{called}");
            Ok(Some(()))
        },
    )
}

/// Folder of a pod's worker's cgroup.
pub(super) fn folder(lab: &Lab, key: &str) -> Result<PathBuf> {
    let status = lab.agent(0).pod_status(lab.pod(key))?;
    let relative = status["cgroup"].as_str().context("a cgroup")?;
    Ok(Path::new("/sys/fs/cgroup").join(relative.trim_start_matches('/')))
}

/// Out of memory is one worker's trouble: it is ended and replaced, which is counted and said;
/// a connection that it does not carry, and its neighbours, go on.
fn memory_max(guest: &Guest) -> Result<()> {
    let (lab, _apps) = lab()?;
    let agent = lab.agent(0);
    for key in [WEB, OTHER] {
        until_served(&lab, lab.pod(key))?;
    }
    let others = (lab.pod(OTHER).addresses()[0], PORT).into();
    let mut open = call::Open::dial(&lab.pod(CLIENT).netns, others)
        .map_err(|called| anyhow::anyhow!("{called}"))?;
    let before = [CLIENT, WEB, OTHER].map(|key| agent.worker_pid(lab.pod(key)));
    let [client, web, other] = before;
    let (client, web, other) = (client?, web?, other?);
    let limit = folder(&lab, WEB)?.join("memory.max");
    let was = fs::read_to_string(&limit)?;
    ensure!(
        was.trim() == (1u64 << 30).to_string(),
        "memory.max is {was}"
    );
    guest.step("the worker of shop/web is left without memory");
    // Less than it has: the kernel ends what can't be made to fit.
    fs::write(&limit, "65536")?;
    wait::until_true("the worker to be ended", wait::PATIENCE, || {
        Ok(agent.worker_pid(lab.pod(WEB)).ok() != Some(web))
    })?;
    fs::write(&limit, was.trim())?;
    // It may have been ended more than once.
    agent.wait_new_worker(lab.pod(WEB), web, wait::PATIENCE * 6)?;
    until_served(&lab, lab.pod(WEB))?;
    guest.step("its pod has a new one");
    let log = fs::read_to_string(agent.daemon.log())?;
    ensure!(
        log.contains("out of memory, its cgroup allows 1024 MiB"),
        "not said:\n{log}"
    );
    let killed = |name: &str| {
        let label = format!("pod=\"shop/{name}\"");
        agent.metric(lab.node(0), "nodemesh_worker_oom_kills_total", &[&label])
    };
    ensure!(
        killed("web")? >= 1.0,
        "not counted:\n{}",
        agent.metrics(lab.node(0))?
    );
    ensure!(
        killed("other")? == 0.0 && killed("client")? == 0.0,
        "others were counted"
    );
    open.ping().context("a connection to a neighbour broke")?;
    for (key, pid) in [(CLIENT, client), (OTHER, other)] {
        ensure!(
            agent.worker_pid(lab.pod(key))? == pid,
            "{key} has another worker as well"
        );
    }
    lab.finish()
}

/// Processes that burn CPU, ended with it.
pub(super) struct Burners(Vec<Child>);

impl Burners {
    pub(super) fn start(cgroup: &Path, count: usize) -> Result<Self> {
        let mut burners = Self(Vec::new());
        for _ in 0..count {
            burners.0.push(in_cgroup(cgroup, "while :; do :; done")?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A shell that runs a script as the worker of that cgroup would.
pub(super) fn in_cgroup(cgroup: &Path, script: &str) -> Result<Child> {
    let procs = cgroup.join("cgroup.procs");
    let script = format!("echo 0 > {} && {script}", procs.display());
    let mut shell = Command::new("busybox");
    shell.args(["sh", "-c", &script]).stderr(Stdio::null());
    shell.spawn().context("starting busybox sh")
}

pub(super) fn cpu_us(cgroup: &Path) -> Result<u64> {
    field(&cgroup.join("cpu.stat"), "usage_usec")
}

pub(super) fn field(file: &Path, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.with_context(|| format!("no {name} in {}: {text}", file.display()))
}

/// Of one CPU a worker that wants four gets what a worker that wants one does, and no more
/// processes than it is given; calls to a pod whose worker has neither are served meanwhile.
fn cpu_weight(guest: &Guest) -> Result<()> {
    let (lab, _apps) = lab()?;
    let (greedy, modest) = (folder(&lab, WEB)?, folder(&lab, CLIENT)?);
    for cgroup in [&greedy, &modest] {
        let weight = fs::read_to_string(cgroup.join("cpu.weight"))?;
        ensure!(weight.trim() == "100", "cpu.weight is {weight}");
    }
    let burners = (
        Burners::start(&greedy, BURNERS)?,
        Burners::start(&modest, 1)?,
    );
    let before = (cpu_us(&greedy)?, cpu_us(&modest)?);
    thread::sleep(BURN);
    let after = (cpu_us(&greedy)?, cpu_us(&modest)?);
    let (greedy_us, modest_us) = (after.0 - before.0, after.1 - before.1);
    guest.step(format!(
        "CPU of {BURNERS} against 1: {greedy_us} us and {modest_us} us"
    ));
    ensure!(
        greedy_us < modest_us * 2 && modest_us < greedy_us * 2,
        "equal weights got {greedy_us} us and {modest_us} us"
    );
    until_served(&lab, lab.pod(OTHER)).context("while others burn")?;
    drop(burners);
    let script = format!("for n in $(seq {TOO_MANY}); do sleep 60 & done; wait");
    let mut crowd = in_cgroup(&greedy, &script)?;
    wait::until_true("the limit of processes to be met", wait::PATIENCE, || {
        Ok(field(&greedy.join("pids.events"), "max")? > 0)
    })?;
    let current: u64 = fs::read_to_string(greedy.join("pids.current"))?
        .trim()
        .parse()?;
    ensure!(current <= 32, "{current} processes");
    guest.step(format!(
        "{current} processes in the worker's cgroup, and no more"
    ));
    let worker = lab.agent(0).worker_pid(lab.pod(WEB))?;
    for pid in fs::read_to_string(greedy.join("cgroup.procs"))?.lines() {
        let pid: i32 = pid.parse()?;
        if pid != worker {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
    crowd.wait()?;
    until_served(&lab, lab.pod(WEB))?;
    lab.finish()
}
