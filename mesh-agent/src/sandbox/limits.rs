//! Resource limits of a worker: those that a budget of its cgroup does not cover.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors: 2 for a connection, so the worker's own limit on connections comes first.
const DESCRIPTORS: u64 = 1 << 20;
/// Bytes of `memfd_secret` and of locked memory: a private key takes a page.
const LOCKED: u64 = 256 << 10;
/// Bytes of a file: a private key's memfd.
const FILE: u64 = 64 << 10;

/// Lowers the limits. One that is already lower (a container's) is kept: raising it takes
/// CAP_SYS_RESOURCE, which the agent does without.
pub(super) fn set() -> io::Result<()> {
    let limits = [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, FILE),
        (Resource::RLIMIT_MEMLOCK, LOCKED),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        // One thread: the one that there is. Counted per uid, so a worker that is being
        // replaced does not keep the next one from being born: that one is exec'd as root.
        (Resource::RLIMIT_NPROC, 1),
        (Resource::RLIMIT_RTPRIO, 0),
    ];
    for (resource, wanted) in limits {
        let (_, hard) = getrlimit(resource)?;
        let value = wanted.min(hard);
        setrlimit(resource, value, value)?;
    }
    Ok(())
}
