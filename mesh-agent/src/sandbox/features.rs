//! What a worker's confinement and budget need of the kernel.

use std::io;

use super::cgroup;
use super::privileges::{self, landlock_version};
use crate::features::{Feature, Need};

/// Asks the kernel for each.
#[must_use]
pub fn features() -> Vec<Feature> {
    let landlock = landlock_version();
    let mut features = vec![
        feature(
            "seccomp filters",
            Need::Required,
            "leaves a worker the system calls it has a use for",
            "4.14",
            "CONFIG_SECCOMP_FILTER",
            seccomp().err().map(|e| e.to_string()),
        ),
        feature(
            "landlock",
            Need::Optional,
            "without it a worker's empty root and the system call filter alone keep it off files",
            "5.13",
            "CONFIG_SECURITY_LANDLOCK (and in lsm=)",
            (landlock < 1).then(|| "it is not built, or not in lsm=".to_owned()),
        ),
        feature(
            "landlock's scopes",
            Need::Optional,
            "without them the system call filter alone keeps a worker's signals in",
            "6.12",
            "CONFIG_SECURITY_LANDLOCK (and in lsm=)",
            (landlock < 6).then(|| format!("landlock is of version {}", landlock.max(0))),
        ),
        feature(
            "memory that stays not executable",
            Need::Optional,
            "without it the system call filter alone refuses a worker new code",
            "6.3",
            "",
            privileges::no_new_code().err().map(|e| e.to_string()),
        ),
    ];
    features.extend(cgroup::features());
    features
}

fn seccomp() -> io::Result<()> {
    const GET_ACTION_AVAIL: libc::c_ulong = 2;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: reads four bytes, which outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            GET_ACTION_AVAIL,
            0,
            std::ptr::from_ref(&action),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(super) fn feature(
    name: &str,
    need: Need,
    purpose: &'static str,
    since: &'static str,
    config: &'static str,
    lack: Option<String>,
) -> Feature {
    Feature {
        name: name.to_owned(),
        need,
        purpose,
        since,
        config,
        lack,
    }
}
