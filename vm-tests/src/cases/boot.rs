//! That the machine is what the cases take it for.

use std::fs;

use anyhow::{Result, ensure};

use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[Case {
    name: "boot/pure-cgroup2",
    nodes: 1,
    kernel_args: "",
    timeout_s: 30,
    run: pure_cgroup2,
}];

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
