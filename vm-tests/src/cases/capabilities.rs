//! A capability of the supervisor that is needed only where the machine's root is an initramfs, as
//! a guest's is. The others: `tests/tests/privilege/capabilities.rs`.

use anyhow::Result;
use mesh_lab::inject::drop_capability;
use mesh_lab::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::budgets::{WEB, lab, until_served};
use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[Case {
    name: "capabilities/sys-chroot-is-needed-on-an-initramfs",
    nodes: 1,
    kernel_args: "",
    timeout_s: 240,
    run: sys_chroot,
}];

const SYS_CHROOT: u8 = 18;

/// Without it no worker is born there, which is said; a supervisor that has it makes one.
fn sys_chroot(guest: &Guest) -> Result<()> {
    let (mut lab, _apps) = lab()?;
    until_served(&lab, lab.pod(WEB))?;
    let agent = lab.agent(0);
    let supervisor = agent.daemon.pid().map(i32::try_from).transpose()?;
    let supervisor = supervisor.ok_or_else(|| anyhow::anyhow!("no supervisor runs"))?;
    drop_capability(supervisor, SYS_CHROOT)?;
    let old = agent.worker_pid(lab.pod(WEB))?;
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    wait::until_true("CAP_SYS_CHROOT to be missed", wait::PATIENCE * 3, || {
        let status = agent.pod_status(lab.pod(WEB))?;
        let reason = status["reason"].as_str().unwrap_or_default();
        Ok(reason.contains("entering an empty root"))
    })?;
    guest.step("no worker is born without CAP_SYS_CHROOT");
    let (agent, host) = lab.agent_mut(0);
    agent.daemon.kill9()?;
    agent.start(host)?;
    until_served(&lab, lab.pod(WEB))?;
    lab.finish()
}
