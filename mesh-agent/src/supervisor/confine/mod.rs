//! The supervisor gives up what it has no use for once it has started: capabilities, system
//! calls, new code, core dumps. docs/SECURITY.md says what is left, and what for.
//!
//! Workers are born from it, so what they need for their own confinement has to stay.

mod calls;

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, setrlimit};

use super::config::Config;
use crate::sandbox::confine::require_single_thread;
use crate::sandbox::{privileges, slice};

/// A capability by its number (`linux/capability.h`), its name, and what it is kept for.
struct Kept {
    number: u8,
    name: &'static str,
    purpose: &'static str,
}

const fn kept(number: u8, name: &'static str, purpose: &'static str) -> Kept {
    Kept {
        number,
        name,
        purpose,
    }
}

/// What is kept. With `CAP_SYS_ADMIN` the kernel asks for neither `CAP_BPF` nor `CAP_PERFMON`.
const KEPT: [Kept; 9] = [
    kept(5, "CAP_KILL", "ends workers, which have other uids"),
    kept(6, "CAP_SETGID", "gives a worker its gid"),
    kept(7, "CAP_SETUID", "gives a worker its uid"),
    kept(8, "CAP_SETPCAP", "empties a worker's bounding set"),
    kept(
        12,
        "CAP_NET_ADMIN",
        "attaches programs; reads and sets what pods' networks are",
    ),
    kept(
        18,
        "CAP_SYS_CHROOT",
        "closes a worker's root where the machine's own is an initramfs",
    ),
    kept(
        19,
        "CAP_SYS_PTRACE",
        "takes the channel and the namespace out of a running worker",
    ),
    kept(
        21,
        "CAP_SYS_ADMIN",
        "enters pods' network namespaces, makes a worker's own, loads programs",
    ),
    kept(27, "CAP_MKNOD", "makes a worker's null device"),
];

/// Refuses the start without a capability that is needed later.
///
/// # Errors
/// Names each that is missing, with what it is for.
pub(super) fn require_capabilities() -> anyhow::Result<()> {
    let permitted = privileges::permitted().context("reading the supervisor's capabilities")?;
    let missing = KEPT.iter().filter(|kept| permitted & bit(kept) == 0);
    let missing: Vec<String> = missing
        .map(|kept| format!("{} ({})", kept.name, kept.purpose))
        .collect();
    ensure!(
        missing.is_empty(),
        "the supervisor lacks {}; nothing was attached. Start it as root with these capabilities",
        missing.join(", ")
    );
    Ok(())
}

/// Confines the calling thread, which must be the only one, for good.
///
/// # Errors
/// If the kernel refuses a step: the message says which.
pub(super) fn confine(config: &Config) -> anyhow::Result<()> {
    require_single_thread()?;
    // The node's key is in this memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("refusing core dumps of the supervisor")?;
    // Inherited by the workers.
    slice::ask().context("asking for short slices of the processor")?;
    let all = KEPT.iter().fold(0, |all, kept| all | bit(kept));
    privileges::keep_only(all).context("giving up the supervisor's other capabilities")?;
    privileges::refuse_new_code().context("refusing the supervisor executable memory")?;
    calls::filter(config.uid_base).context("installing the supervisor's system call filter")
}

fn bit(kept: &Kept) -> u64 {
    1 << kept.number
}
