//! What plays kubelet: programs of a node in a cgroup of their own.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;
use crate::lab::Lab;
use crate::{cgroup, programs, removal};

/// Its cgroup, below the lab's.
pub(crate) const CGROUP: &str = "kubelet.service";

/// A kubelet's cgroup. There is one for all nodes of a lab: their namespaces tell them apart.
#[derive(Debug)]
pub struct Kubelet {
    cgroup: Cgroup,
}

impl Lab {
    /// Makes the cgroup that [`Plan::kubelet`](crate::Plan::kubelet) names. It goes when the value is
    /// dropped, and can then be made anew, as when kubelet's service is restarted.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn kubelet(&self) -> Result<Kubelet> {
        let lab = cgroup::mount_point()?.join(removal::cgroup_name(self.prefix()));
        let cgroup = Cgroup::create(lab.join(CGROUP))?;
        Ok(Kubelet { cgroup })
    }
}

impl Kubelet {
    /// The kernel's id of it.
    ///
    /// # Errors
    /// If it is gone.
    pub fn id(&self) -> Result<u64> {
        let metadata = fs::metadata(self.cgroup.path()).context("kubelet's cgroup")?;
        Ok(std::os::unix::fs::MetadataExt::ino(&metadata))
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.cgroup.path().to_owned()
    }

    /// A program found on the machine, to run as kubelet in a network namespace: a node's, if it is
    /// one.
    ///
    /// # Errors
    /// If the program isn't there.
    pub fn command(&self, netns: BorrowedFd<'_>, program: impl AsRef<OsStr>) -> Result<Command> {
        let (procs, netns) = (self.cgroup.procs()?, netns.try_clone_to_owned()?);
        let mut command = Command::new(programs::find(program.as_ref())?);
        let enter = move || {
            let zero = b"0";
            // SAFETY: plain system calls on descriptors that the closure owns; nothing is allocated
            // between fork and exec.
            let done = unsafe {
                libc::write(procs.as_raw_fd(), zero.as_ptr().cast(), 1) == 1
                    && libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) == 0
            };
            done.then_some(()).ok_or_else(std::io::Error::last_os_error)
        };
        // SAFETY: `enter` makes two system calls and allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }
}
