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
