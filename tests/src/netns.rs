//! Named network namespaces.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};

use crate::wait;

/// Where `ip netns` keeps its names.
pub const FOLDER: &str = "/run/netns";

/// Users of a namespace of its own: from 0 on there, from 100 × 65,536 on here, so many.
const OWN_USERS: &str = "0 6553600 65536";

/// A named network namespace; the name goes when this is dropped, the namespace with the
/// last process in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes namespaces of these names, their loopback up.
    ///
    /// # Errors
    /// If `ip` (iproute2) is missing, this process may not make namespaces, or a name is taken.
    pub fn create_all(names: &[String]) -> Result<Vec<Self>> {
        let mut batch = String::new();
        for name in names {
            batch.push_str(&format!("netns add {name}\n"));
        }
        ip_batch(Command::new("ip"), &batch).context("making network namespaces")?;
        let made: Result<Vec<Self>> = names.iter().map(|name| Self::open(name)).collect();
        let made = made?;
        for netns in &made {
            netns.ip("link set lo up\n")?;
        }
        Ok(made)
    }

    /// Has the name stand for another network namespace, new as well, that belongs to a user namespace of
    /// its own.
    pub(crate) fn with_own_users(self) -> Result<Self> {
        let (name, path) = (self.name.clone(), self.path());
        drop(self);
        let mut holder = Command::new("unshare")
            .args(["--user", "--net", "sleep", "600"])
            .spawn()
            .context("starting `unshare`: install util-linux")?;
        let made = Self::hold(holder.id(), &path);
        let _ = holder.kill();
        let _ = holder.wait();
        made.with_context(|| format!("a network namespace {name} with users of its own"))?;
        let netns = Self::open(&name)?;
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// Keeps the namespace of a process, whose users become a range of this machine's as those of a
    /// kubelet's pods do.
    fn hold(pid: u32, path: &Path) -> Result<()> {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
        let (own, pid) = (of("self")?, pid.to_string());
        wait::until_true("its namespaces", wait::PATIENCE, || Ok(of(&pid)? != own))?;
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), OWN_USERS)?;
        }
        File::create(path)?;
        let from = format!("/proc/{pid}/ns/net");
        let none = None::<&str>;
        Ok(mount(
            Some(from.as_str()),
            path,
            none,
            MsFlags::MS_BIND,
            none,
        )?)
    }

    fn open(name: &str) -> Result<Self> {
        let path = Path::new(FOLDER).join(name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// The open namespace.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs a closure in the namespace, on a thread that ends with it. What it opens stays
    /// in the namespace. `/proc/net` is the process's there: read `/proc/thread-self/net`.
    ///
    /// # Panics
    /// With the closure's own panic, or if the namespace can't be entered.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .unwrap_or_else(|e| panic!("entering network namespace {}: {e}", self.name));
                closure()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that will run in the namespace, otherwise as this process runs.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = self.file.as_raw_fd();
        let enter = move || {
            // SAFETY: a plain system call on a descriptor that this process holds open until
            // after the spawn; nothing is allocated between fork and exec.
            match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: `enter` makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Takes a device of the caller's namespace into this one, as a port of a bridge.
    ///
    /// # Errors
    /// With `ip`'s own words.
    pub(crate) fn adopt_device(&self, device: &str, bridge: &str) -> Result<()> {
        let name = &self.name;
        ip_batch(
            Command::new("ip"),
            &format!("link set {device} netns {name}\n"),
        )?;
        self.ip(&format!("link set {device} master {bridge} up\n"))
    }

    /// Runs lines of `ip -batch` in the namespace.
    ///
    /// # Errors
    /// With `ip`'s own words.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]);
        ip_batch(command, batch).with_context(|| format!("in network namespace {}", self.name))
    }

    /// Writes settings below `/proc/sys/net`, for example `("ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// Naming the setting that could not be written.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value).with_context(|| {
                    format!("writing {value} to {} in {}", path.display(), self.name)
                })?;
            }
            Ok(())
        })
    }

    /// The index of a link in the namespace.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn link_index(&self, link: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(link))
            .with_context(|| format!("looking up link {link} in {}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.path());
    }
}

/// Takes a name away. A name that is gone already is no error.
pub(crate) fn remove(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

fn ip_batch(mut command: Command, batch: &str) -> Result<()> {
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `ip`: install iproute2")?;
    let mut stdin = child.stdin.take().context("stdin of `ip`")?;
    stdin.write_all(batch.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("ip -batch: {}\n{batch}", words.trim());
    }
    Ok(())
}
