//! That the machine is what the cases take it for, and what a boot leaves of a node.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use mesh_lab::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::budgets;
use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "boot/pure-cgroup2",
        nodes: 1,
        kernel_args: "",
        timeout_s: 30,
        run: pure_cgroup2,
    },
    Case {
        name: "boot/nothing-of-an-earlier-boot-harms",
        nodes: 1,
        kernel_args: "",
        timeout_s: 240,
        run: after_a_boot,
    },
];

/// One hierarchy with its controllers, as distributions have it.
fn pure_cgroup2(guest: &Guest) -> Result<()> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control")?;
    guest.step(format!("controllers: {}", controllers.trim()));
    for wanted in ["cpu", "memory", "pids"] {
        ensure!(
            controllers.split_whitespace().any(|c| c == wanted),
            "the root delegates {controllers:?}, not {wanted}"
        );
    }
    Ok(())
}

/// What a boot leaves of a node that keeps both its folders on a disk: no process, no pin, no
/// cgroup, and records whose namespaces are gone, their numbers given to others. (The machine
/// itself has no disk to keep them on: here they stay, and the rest is taken away.)
fn after_a_boot(guest: &Guest) -> Result<()> {
    let (mut lab, _apps) = budgets::lab()?;
    for key in ["shop/web", "shop/other"] {
        budgets::until_served(&lab, lab.pod(key))?;
    }
    let status = lab.agent(0).status()?;
    let cgroups: Vec<String> = ["client", "web", "other"]
        .map(|name| {
            let pod = lab.agent(0).pod_status(lab.pod(&format!("shop/{name}")));
            pod.map(|pod| pod["cgroup"].as_str().unwrap_or_default().to_owned())
        })
        .into_iter()
        .collect::<Result<_>>()?;
    let instance = cgroups[0].split('/').find(|part| !part.is_empty());
    let instance = instance.with_context(|| status.to_string())?.to_owned();
    let (agent, _) = lab.agent_mut(0);
    agent.daemon.kill9()?;
    for cgroup in &cgroups {
        power_off(&Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/')))?;
    }
    fs::remove_dir(Path::new("/sys/fs/cgroup").join(&instance))?;
    fs::remove_dir_all(Path::new("/sys/fs/bpf").join(&instance))?;
    let run_dir = run_dir(lab.folder())?;
    let records = || Ok::<_, anyhow::Error>(fs::read_dir(run_dir.join("pods"))?.count());
    ensure!(records()? == 3, "{} records", records()?);
    fs::write(
        run_dir.join("boot_id"),
        "00000000-0000-0000-0000-000000000000\n",
    )?;
    guest.step("the node is as after a boot, its records of the boot before");
    let (agent, host) = lab.agent_mut(0);
    agent.start(host)?;
    ensure!(records()? == 0, "records of an earlier boot are left");
    let log = fs::read_to_string(agent.daemon.log())?;
    ensure!(log.contains("the machine was booted"), "not said:\n{log}");
    // As a container runtime does; shop/other is not there any more.
    for key in ["shop/client", "shop/web"] {
        lab.agent(0).add_pod(lab.pod(key))?;
    }
    budgets::until_served(&lab, lab.pod("shop/web"))?;
    guest.step("pods were enrolled anew");
    let gone = cgroups.iter().find(|cgroup| cgroup.contains("other"));
    let gone = Path::new("/sys/fs/cgroup").join(gone.context("a cgroup")?.trim_start_matches('/'));
    ensure!(
        !gone.exists(),
        "{} is made for a pod that is gone",
        gone.display()
    );
    ensure!(
        lab.agent(0).pod_status(lab.pod("shop/other")).is_err(),
        "the pod that is gone is known"
    );
    lab.finish()
}

/// Ends what is in a cgroup, and removes it.
fn power_off(cgroup: &Path) -> Result<()> {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    for pid in processes.lines() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    }
    wait::until("the cgroup to be empty", wait::PATIENCE, || {
        fs::remove_dir(cgroup)?;
        Ok(Some(()))
    })
}

/// The agent's run folder, somewhere below the lab's.
fn run_dir(folder: &Path) -> Result<std::path::PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.ends_with("boot_id") {
                return Ok(folder);
            }
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    anyhow::bail!("no agent ran in {}", folder.display())
}
