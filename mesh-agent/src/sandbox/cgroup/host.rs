//! Seeing the host's cgroups from within a container.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::{CgroupError, MeshCgroup, make, remove};

/// Name of the cgroup that the probe makes; no pod's, for those have an underscore.
const PROBE: &str = "probe";

/// Inode of the initial cgroup namespace (`PROC_CGROUP_INIT_INO`, `linux/proc_ns.h`).
const INITIAL_NAMESPACE: u64 = 0xefff_fffb;

/// Enters the machine's own cgroup namespace, by way of PID 1: from a private one, moving a
/// process to the mesh's cgroup is `ENOENT`, and a cgroup's depth, which the eBPF programs
/// need, can't be known. For this thread only, so it must be called before any other exists.
///
/// # Errors
/// [`CgroupError::Namespace`].
pub fn enter_host_namespace() -> Result<(), CgroupError> {
    let inside = || -> io::Result<bool> {
        Ok(fs::metadata("/proc/self/ns/cgroup")?.ino() == INITIAL_NAMESPACE)
    };
    let enter = || -> io::Result<()> {
        if inside()? {
            return Ok(());
        }
        setns(
            File::open("/proc/1/ns/cgroup")?.as_fd(),
            CloneFlags::CLONE_NEWCGROUP,
        )?;
        if inside()? {
            return Ok(());
        }
        Err(io::Error::other("PID 1 is in a private one itself"))
    };
    enter().map_err(CgroupError::Namespace)
}

/// Moves a short-lived child into a cgroup of the subtree and ends it, so that a machine
/// where workers can't be moved is told at start.
///
/// # Errors
/// [`CgroupError::Move`].
pub fn probe_move(mesh: &MeshCgroup) -> Result<(), CgroupError> {
    // A leaf: with controllers enabled, processes can't live in the subtree's root.
    let leaf = mesh.folder().join(PROBE);
    make(&leaf)?;
    let procs = leaf.join("cgroup.procs");
    let probe = || -> io::Result<()> {
        let mut file = File::options().write(true).open(&procs)?;
        let (mut hold, held) = io::pipe()?;
        // SAFETY: the child only reads and exits: nothing that locks or allocates.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(held);
                let _ = hold.read(&mut [0]);
                // SAFETY: ends the child without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                let moved = file.write_all(child.to_string().as_bytes());
                kill(child, Signal::SIGKILL)?;
                waitpid(child, None)?;
                drop(held);
                moved
            }
        }
    };
    let moved = probe().map_err(|source| CgroupError::Move {
        path: procs.clone(),
        source,
    });
    remove(&leaf)?;
    moved
}
