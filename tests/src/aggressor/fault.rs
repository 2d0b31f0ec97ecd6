//! What befalls a worker: its own end, or its running wild.

use std::fs;
use std::io;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::inject::{Spinning, Tracee};

/// Bytes at once that no worker's budget has room for.
const TOO_MUCH: u64 = 64 << 30;

/// What befalls a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// It aborts, as after a panic.
    Abort,
    /// It takes more memory than its cgroup may have, and the kernel kills it.
    OutOfMemory,
    /// It is stopped.
    Stop,
    /// It runs in a circle and does nothing else.
    Spin,
}

/// A fault that lasts; it ends when this is dropped.
#[derive(Debug)]
pub struct Lasting {
    stopped: Option<Pid>,
    _spinning: Option<Spinning>,
}

impl From<Spinning> for Lasting {
    fn from(spinning: Spinning) -> Self {
        Self {
            stopped: None,
            _spinning: Some(spinning),
        }
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        if let Some(pid) = self.stopped {
            // The agent may have put another worker in its place.
            let _ = kill(pid, Signal::SIGCONT);
        }
    }
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 4] = [Self::Abort, Self::OutOfMemory, Self::Stop, Self::Spin];

    /// What it is called.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Abort => "worker aborts",
            Self::OutOfMemory => "worker OOM-killed",
            Self::Stop => "worker stopped",
            Self::Spin => "worker spins",
        }
    }

    /// Lets it befall the worker of that process id.
    ///
    /// # Errors
    /// If it can't be done to the process; or if it has room for more memory than it may have.
    pub fn befall(self, pid: i32) -> Result<Lasting> {
        let worker = Pid::from_raw(pid);
        let mut stopped = None;
        match self {
            Self::Abort => kill(worker, Signal::SIGABRT)?,
            Self::OutOfMemory => run_out_of_memory(pid)?,
            Self::Stop => {
                kill(worker, Signal::SIGSTOP)?;
                stopped = Some(worker);
            }
            Self::Spin => return Ok(Spinning::new(pid).context("making it spin")?.into()),
        }
        Ok(Lasting {
            stopped,
            _spinning: None,
        })
    }
}

/// Has the worker itself ask for the memory: the kernel charges it to the worker's cgroup.
fn run_out_of_memory(pid: i32) -> Result<()> {
    let mut worker = Tracee::seize(pid).context("seizing the worker")?;
    let read_write = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned().into();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_POPULATE;
    let arguments = [
        0,
        TOO_MUCH,
        read_write,
        flags.cast_unsigned().into(),
        u64::MAX,
        0,
    ];
    let mapped = worker.call(libc::SYS_mmap, arguments, &[]);
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match mapped {
        Err(_) if !state.contains(") R ") => Ok(()),
        Err(error) => Err(error).context("the worker was not killed"),
        Ok(got) => {
            let error = i32::try_from(-got).map(io::Error::from_raw_os_error);
            bail!("the worker got {got:#x} ({error:?}) for {TOO_MUCH} bytes")
        }
    }
}
