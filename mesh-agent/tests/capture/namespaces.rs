//! What namespaces keep from a process.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::lab::{Lab, cgroup2_mount_line};

/// Runs in a child, which ends with what `run` says.
fn in_child(run: impl FnOnce() -> io::Result<()>) -> i32 {
    // SAFETY: the child only makes system calls and short-lived allocations, and ends by _exit.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, status) => status,
            other => panic!("{other:?}"),
        },
        ForkResult::Child => {
            let status = match run() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            // SAFETY: ends the child without running the test harness's exit code.
            unsafe { libc::_exit(status) }
        }
    }
}

fn join(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

/// Why the supervisor enters the cgroup namespace of the node's first process.
#[test]
fn a_private_cgroup_namespace_keeps_processes_from_the_meshs_cgroup() {
    if !cgroup2_mount_line().contains("nsdelegate") {
        println!("test skipped: cgroup2 is mounted without nsdelegate here");
        return;
    }
    let mut lab = Lab::node();
    lab.add_pod();
    let (container, mesh) = (lab.app_cgroup(), lab.pod().cgroup.clone());
    let confine = || {
        join(&container)?;
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(io::Error::from)
    };
    let refused = in_child(|| {
        confine()?;
        join(&mesh)
    });
    assert_eq!(refused, libc::ENOENT);
    let outside = File::open("/proc/1/ns/cgroup").unwrap();
    let moved = in_child(|| {
        confine()?;
        setns(outside.as_fd(), CloneFlags::CLONE_NEWCGROUP)?;
        join(&mesh)
    });
    assert_eq!(moved, 0, "{}", io::Error::from_raw_os_error(moved));
}
