//! Cases that must fail: with them the host checks that it sees a hang, a panic and a refusal
//! for what they are.

use std::fs;
use std::thread;

use anyhow::{Result, bail};

use crate::{Case, Guest};

/// In this order; the last one passes, on a machine that was started anew.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "doomed/fails",
        nodes: 1,
        kernel_args: "",
        timeout_s: 10,
        run: |_: &Guest| bail!("as it has to"),
    },
    Case {
        name: "doomed/panics",
        nodes: 1,
        kernel_args: "",
        timeout_s: 20,
        run: panic_the_kernel,
    },
    Case {
        name: "doomed/hangs",
        nodes: 1,
        kernel_args: "",
        timeout_s: 1,
        run: |_: &Guest| loop {
            thread::park();
        },
    },
    Case {
        name: "doomed/passes",
        nodes: 1,
        kernel_args: "",
        timeout_s: 10,
        run: |_: &Guest| Ok(()),
    },
];

fn panic_the_kernel(_: &Guest) -> Result<()> {
    fs::write("/proc/sysrq-trigger", "c")?;
    bail!("the kernel is still there")
}
