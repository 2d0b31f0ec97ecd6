//! How a worker is born: cgroup, network namespace, empty root, own uid, no way back.
//!
//! The supervisor [`spawn`]s a worker from a [`WorkerImage`], a sealed copy of its own
//! executable. The child is exec'd, never a forked copy, so that nothing of the
//! supervisor's memory is in it. It calls [`become_worker`] before anything else; what
//! comes back from there can't open a path, make a process, leave its namespaces or its
//! cgroup, or touch another process. A supervisor that restarts [`adopt`]s the workers
//! that it finds in the pods' cgroups.
//!
//! Workers outlive the supervisor: they get no parent-death signal and a session of their
//! own. A worker that is the supervisor's child is reaped by [`Newborn::exited`]; one that
//! was adopted belongs to the machine's (or the container's) init, which reaps it.

mod adopt;
pub mod cgroup;
pub(crate) mod confine;
mod features;
pub(crate) mod filter;
mod image;
mod limits;
pub(crate) mod privileges;
mod root;
pub(crate) mod seccomp;
pub(crate) mod slice;
mod spawn;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

pub use adopt::{Expected, ImageId, adopt, image_digest, image_id, started};
pub use confine::{become_worker, is_worker};
pub use features::features;
pub use image::{ImageDigest, WorkerImage};
pub use spawn::{Birth, spawn};

/// First argument of a worker's command line.
pub const WORKER_COMMAND: &str = "worker";

/// A worker as its supervisor holds it.
#[derive(Debug)]
pub struct Newborn {
    /// Process id, in the supervisor's pid namespace.
    pub pid: i32,
    /// Readable when the worker has ended.
    pub pidfd: OwnedFd,
    /// The supervisor's end of the channel, non-blocking.
    pub channel: OwnedFd,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It was adopted, so init got its status.
    Unknown,
}

impl Newborn {
    /// How the worker ended, or `None` while it lives. Reaps it where it is our child; to be
    /// called once when [`Newborn::pidfd`] is readable. Does not block.
    ///
    /// # Errors
    /// Whatever `waitid` or `poll` gives.
    pub fn exited(&self) -> io::Result<Option<Exit>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        match waitid(Id::PIDFd(self.pidfd.as_fd()), flags) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(Exit::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Exit::Signal(signal as i32))),
            Ok(_) => Ok(None),
            Err(Errno::ECHILD) => Ok(adopt::ended(&self.pidfd)?.then_some(Exit::Unknown)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a signal through the pidfd, so never to a process that took over the pid.
    ///
    /// # Errors
    /// `ESRCH` when the worker has ended and was reaped.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        adopt::signal(&self.pidfd, signal as i32)
    }
}

/// What went wrong in making, adopting or confining a worker.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The sealed copy of the executable could not be made.
    #[error("copying {executable} into a sealed memfd failed at {step}: {source}")]
    Image {
        /// What was copied.
        executable: String,
        /// The call that failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The worker could not be started.
    #[error("starting the worker of {name} failed at {step}: {source}")]
    Spawn {
        /// The pod, as in [`Birth::name`].
        name: String,
        /// The call that failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A process in a pod's cgroup could not be asked for its channel.
    #[error("adopting process {pid} failed at {step}: {source}")]
    Adopt {
        /// The process.
        pid: i32,
        /// The call that failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A process in a pod's cgroup is no worker of ours.
    #[error("process {pid} is not the worker it should be: {why}; it was left alone")]
    NotOurs {
        /// The process.
        pid: i32,
        /// What differs, expected and found.
        why: String,
    },
    /// In the child: its command line is not one that [`spawn`] makes.
    #[error("`{WORKER_COMMAND}` is started by the supervisor only: {0}")]
    Arguments(String),
    /// In the child: a step of the confinement failed, so there is no worker.
    #[error("confining the worker failed at {step}: {source}")]
    Confine {
        /// The step.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// In the child: a step seemed to work but what it should have done is not so.
    #[error("confining the worker failed: {0}")]
    Unconfined(String),
}
