//! Real programs as apps of a pod: an unprivileged uid, in the pod's network namespace and
//! in a cgroup of their own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::fchown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::pod::Pod;
use crate::{programs, wait};

/// A program about to run in a pod.
#[derive(Debug)]
pub struct PodCommand<'a> {
    pod: &'a Pod,
    program: OsString,
    command_line: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    stdin: Option<File>,
    uid: u32,
    cgroup: Option<String>,
    timeout: Duration,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ran {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ran {
    /// Standard output of a program that exited with 0.
    ///
    /// # Errors
    /// If it did not, with what it said.
    pub fn ok(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!("{}: {}{}", self.status, self.stdout, self.stderr.trim_end());
    }
}

impl<'a> PodCommand<'a> {
    pub(crate) fn new(pod: &'a Pod, program: &OsStr) -> Self {
        Self {
            pod,
            program: program.to_owned(),
            command_line: Vec::new(),
            environment: Vec::new(),
            stdin: None,
            uid: pod.uid(),
            cgroup: None,
            timeout: Duration::from_secs(30),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command_line.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        let new = arguments.into_iter().map(|a| a.as_ref().to_owned());
        self.command_line.extend(new);
        self
    }

    /// Sets an environment variable. Nothing but `PATH` and `HOME` is inherited.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref().to_owned();
        self.environment.push((name.into(), value));
        self
    }

    /// In this cgroup below the pod's, such as one that is named as kubelet names it.
    #[must_use]
    pub fn cgroup(mut self, path: &str) -> Self {
        self.cgroup = Some(path.to_owned());
        self
    }

    /// Reads standard input from this file (nothing by default).
    #[must_use]
    pub fn stdin(mut self, file: File) -> Self {
        self.stdin = Some(file);
        self
    }

    /// Runs as root with every capability, as a privileged container would.
    #[must_use]
    pub fn root(self) -> Self {
        self.uid(0)
    }

    /// Runs as this uid instead of the pod's.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = uid;
        self
    }

    /// How long [`Self::output`] waits.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// If the program isn't there or can't be started as such an app.
    pub fn spawn(mut self) -> Result<App> {
        let number = self.pod.apps_started.fetch_add(1, Ordering::Relaxed);
        let path = programs::find(&self.program)?;
        let path = programs::stage(&path, &self.pod.folder)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let group = self.cgroup.take();
        let group = group.unwrap_or_else(|| format!("{number}-{name}"));
        let cgroup = Cgroup::create(self.pod.cgroup.path().join(group))?;
        let stdout = self.pod.folder.join(format!("{number}-{name}.out"));
        let stderr = self.pod.folder.join(format!("{number}-{name}.err"));
        let procs = cgroup.procs()?;
        let mut command = Command::new(&path);
        command
            .args(&self.command_line)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", &self.pod.folder)
            .envs(self.environment.drain(..))
            .current_dir(&self.pod.folder)
            .stdin(self.stdin.take().map_or_else(Stdio::null, Stdio::from))
            .stdout(owned(&stdout, self.uid)?)
            .stderr(owned(&stderr, self.uid)?)
            .process_group(0);
        become_app(&mut command, &procs, self.pod, self.uid);
        let what = format!("{} to start in {}", path.display(), self.pod.key());
        let child = wait::until(&what, wait::PATIENCE, || match command.spawn() {
            // A thread that forked while the program was copied here still has it open.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => Ok(None),
            started => Ok(Some(started)),
        })?
        .with_context(|| what)?;
        Ok(App {
            name: format!("{name} in {}", self.pod.key()),
            child,
            stdout,
            stderr,
            cgroup,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// If it can't be started, or is not done in time; its exit status is no error.
    pub fn output(self) -> Result<Ran> {
        let timeout = self.timeout;
        let mut app = self.spawn()?;
        let status = app.wait(timeout)?;
        Ok(Ran {
            status,
            stdout: app.stdout(),
            stderr: app.stderr(),
        })
    }
}

/// A file that the app may open again by name, as `/dev/stdout`.
fn owned(path: &Path, uid: u32) -> Result<File> {
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    fchown(&file, Some(uid), Some(uid))?;
    Ok(file)
}

fn become_app(command: &mut Command, procs: &File, pod: &Pod, uid: u32) {
    let (procs, netns) = (procs.as_raw_fd(), pod.netns.as_fd().as_raw_fd());
    let enter = move || {
        // SAFETY: plain system calls on descriptors that the parent holds open until after
        // the spawn, and on a static byte; nothing is allocated between fork and exec.
        let done = unsafe {
            libc::write(procs, c"0".as_ptr().cast(), 1) == 1
                && libc::setns(netns, libc::CLONE_NEWNET) == 0
                && libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(uid, uid, uid) == 0
                && libc::setresuid(uid, uid, uid) == 0
        };
        if done {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: `enter` makes system calls only.
    unsafe { command.pre_exec(enter) };
}

/// A running app; killed with all its children when dropped.
#[derive(Debug)]
pub struct App {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    cgroup: Cgroup,
}

impl App {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// CPU time that it and its children have had, also once they have ended.
    ///
    /// # Errors
    /// If its cgroup doesn't tell.
    pub fn cpu(&self) -> Result<Duration> {
        self.cgroup.cpu()
    }

    /// What it has written to standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        lossy(&self.stdout)
    }

    /// What it has written to standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        lossy(&self.stderr)
    }

    /// The file behind its standard output.
    #[must_use]
    pub fn stdout_path(&self) -> &Path {
        &self.stdout
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If its state can't be asked for.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time, with what it wrote last.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let (child, stderr) = (&mut self.child, &self.stderr);
        wait::until(&what, timeout, || Ok(child.try_wait()?))
            .with_context(|| format!("it said:\n{}", wait::tail(stderr, 10)))
    }

    /// Waits until it has written a line that contains `needle` to standard output, and
    /// returns that line.
    ///
    /// # Errors
    /// When [`wait::PATIENCE`] is over.
    pub fn wait_line(&self, needle: &str) -> Result<String> {
        wait::line_in_file(&self.stdout, needle, wait::PATIENCE)
            .with_context(|| format!("{} (it said: {})", self.name, self.stderr().trim_end()))
    }

    /// Sends a signal to it and to every process it has made.
    ///
    /// # Errors
    /// If one of them is gone meanwhile.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        for pid in self.cgroup.pids() {
            kill(Pid::from_raw(pid), signal)
                .with_context(|| format!("{signal} to a process of {}", self.name))?;
        }
        Ok(())
    }

    /// Kills it, by SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
