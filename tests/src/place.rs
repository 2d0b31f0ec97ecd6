//! Which processor programs run on, and whether they give way to all others.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Where programs run that are started there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the processor.
    pub cpu: usize,
    /// Whether they run only while no other program of that processor wants to
    /// (`SCHED_IDLE`).
    pub background: bool,
}

impl Place {
    /// Runs a closure on a thread of that place, which ends with it. What is started there,
    /// threads or programs, inherits the place.
    ///
    /// # Errors
    /// If there is no such processor, or this process may not use it; or the closure's own.
    ///
    /// # Panics
    /// With the closure's own panic.
    pub fn run<T: Send>(self, closure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                closure()
            });
            match inside.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn enter(self) -> Result<()> {
        let mut cpus = CpuSet::new();
        cpus.set(self.cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)
            .with_context(|| format!("going to processor {}", self.cpu))?;
        if self.background {
            // SAFETY: an all-zero parameter is what the policy asks for, and lives on this stack.
            let set = unsafe {
                let parameter: libc::sched_param = std::mem::zeroed();
                libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter)
            };
            anyhow::ensure!(set == 0, "SCHED_IDLE: {}", std::io::Error::last_os_error());
        }
        Ok(())
    }
}

/// How long a process may run before the scheduler chooses anew, if others want to run as well
/// (sched(7)).
///
/// # Errors
/// If there is no such process.
pub fn slice(pid: i32) -> Result<Duration> {
    // SAFETY: a struct of numbers, which may all be zero.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most `size` bytes to `attributes`, which has as many.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, pid, &raw mut attributes, size, 0) };
    let error = std::io::Error::last_os_error();
    anyhow::ensure!(got == 0, "the slice of process {pid}: {error}");
    Ok(Duration::from_nanos(attributes.sched_runtime))
}

/// Version of the running kernel: its first two numbers.
///
/// # Errors
/// If it is not like that.
pub fn kernel() -> Result<[u32; 2]> {
    let uname = nix::sys::utsname::uname()?;
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => Ok([major, minor]),
        _ => anyhow::bail!("the kernel's release is {release:?}"),
    }
}
