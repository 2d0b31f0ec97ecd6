//! A process of the mesh that the lab starts, kills and starts again.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::wait;

/// A long-running process, with a log that survives its restarts.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    cgroup: Cgroup,
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn new(
        name: &str,
        program: PathBuf,
        arguments: Vec<String>,
        log: PathBuf,
        cgroup: Cgroup,
    ) -> Self {
        Self {
            name: name.to_owned(),
            program,
            arguments,
            environment: Vec::new(),
            log,
            cgroup,
            child: None,
        }
    }

    /// Sets an environment variable from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Gives it more arguments from the next start on.
    pub(crate) fn add_arguments(&mut self, arguments: &[String]) {
        self.arguments.extend_from_slice(arguments);
    }

    /// Runs another program from the next start on.
    pub(super) fn set_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Its program, for another run of it.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What it is started with.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Starts it in a namespace.
    pub(crate) fn start(&mut self, netns: &Netns) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening {}", self.log.display()))?;
        let mut command = netns.command(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(n, v)| (n, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        // Open until after the spawn.
        let procs = self.cgroup.procs()?;
        join(&mut command, &procs);
        let child = command
            .spawn()
            .with_context(|| format!("starting {} ({})", self.name, self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Kills it by SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill9(&mut self) -> Result<()> {
        let mut child = self.running()?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends it by SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// If it does not run, or does not end in ten seconds.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut child = self.running()?;
        let pid = i32::try_from(child.id())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        let what = format!("{} to end after SIGTERM", self.name);
        let ended = wait::until(&what, wait::PATIENCE, || Ok(child.try_wait()?));
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.with_context(|| self.tail())
    }

    /// Kills whatever it has started that is still in its cgroup.
    pub(crate) fn kill_all(&self) -> Result<()> {
        std::fs::write(self.cgroup.path().join("cgroup.kill"), "1")
            .with_context(|| format!("killing what {} has started", self.name))
    }

    fn running(&mut self) -> Result<Child> {
        self.child
            .take()
            .with_context(|| format!("{} is not running", self.name))
    }

    /// Waits for a condition while the process runs; its end is an error, with its last words.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let mut ended = None;
        let child = &mut self.child;
        let met = wait::until(what, timeout, || {
            if let Some(status) = child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                ended = Some(status);
                return Ok(Some(()));
            }
            Ok(condition()?.then_some(()))
        });
        if let Some(status) = ended {
            self.child = None;
            anyhow::bail!(
                "{} ended ({status}) before {what}; {}",
                self.name,
                self.tail()
            );
        }
        met.with_context(|| self.tail())
    }

    /// Waits until its log has a line that contains `needle`, and returns that line.
    ///
    /// # Errors
    /// When [`wait::PATIENCE`] is over.
    pub fn wait_log(&self, needle: &str) -> Result<String> {
        wait::line_in_file(&self.log, needle, wait::PATIENCE)
    }

    /// The end of its log, under its name.
    #[must_use]
    pub fn tail(&self) -> String {
        format!(
            "log of {} ({}):\n{}",
            self.name,
            self.log.display(),
            wait::tail(&self.log, 15)
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn join(command: &mut Command, procs: &File) {
    let procs = procs.as_raw_fd();
    let enter = move || {
        // SAFETY: one system call, on a descriptor that is open until after the spawn.
        match unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) } {
            1 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: `enter` makes one system call and allocates nothing.
    unsafe { command.pre_exec(enter) };
}
