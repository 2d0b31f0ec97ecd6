//! One case.

use crate::Guest;

/// A test that runs in a guest.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, `topic/what-holds`.
    pub name: &'static str,
    /// How many machines it needs: one, or two as two nodes on one network.
    pub nodes: u8,
    /// Added to the kernel's command line. Cases with the same one share a boot.
    pub kernel_args: &'static str,
    /// How long it may take on a machine that is emulated, in seconds.
    pub timeout_s: u64,
    /// The test. With two nodes it runs on both at once.
    pub run: fn(&Guest) -> anyhow::Result<()>,
}

/// Topic of cases about a container runtime, which guests of no other case have.
const RUNTIME: &str = "runtime";
/// Topics of cases that are not about the kernel: one is enough for them.
const ON_ONE_KERNEL: [&str; 2] = ["clock", RUNTIME];

impl Case {
    fn topic(&self) -> &str {
        self.name.split('/').next().unwrap_or(self.name)
    }

    /// Whether its machines have a disk, and the programs of a container runtime.
    #[must_use]
    pub fn has_runtime(&self) -> bool {
        self.topic() == RUNTIME
    }

    /// Whether it is run on one kernel alone.
    #[must_use]
    pub fn on_one_kernel(&self) -> bool {
        ON_ONE_KERNEL.contains(&self.topic())
    }
}
