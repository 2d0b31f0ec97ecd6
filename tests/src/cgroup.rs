//! cgroup v2: a group for everything the lab runs, so that all of it can be killed at once.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// The first cgroup2 mount of this machine (`/sys/fs/cgroup`, or below it where v1 is also
/// in use).
///
/// # Errors
/// If there is none.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = mounts(|kind| kind == "cgroup2")?.into_iter().next();
    mounts
        .context("no cgroup2 mount in /proc/self/mountinfo: mount one (mount -t cgroup2 none DIR)")
}

/// The mounts of cgroups of any version: on hybrid machines budgets are in v1.
///
/// # Errors
/// If mounts can't be read.
pub fn mount_points() -> Result<Vec<PathBuf>> {
    mounts(|kind| kind.starts_with("cgroup"))
}

fn mounts(wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mounts = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        wanted(right.split(' ').next()?).then(|| left.split(' ').nth(4))?
    });
    Ok(mounts.map(PathBuf::from).collect())
}

/// A control group; its processes are killed and it is removed when this is dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a group, with its parents.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("making cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `cgroup.procs`, open for writing: whoever writes `0` joins.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn procs(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))
    }

    /// CPU time of all processes that are or were in it or below it. Every cgroup v2 counts
    /// that, also without the cpu controller.
    ///
    /// # Errors
    /// If `cpu.stat` can't be read.
    pub fn cpu(&self) -> Result<Duration> {
        let path = self.path.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut lines = text.lines();
        let used = lines.find_map(|line| line.strip_prefix("usage_usec "));
        let used = used.with_context(|| format!("{} has no usage_usec", path.display()))?;
        Ok(Duration::from_micros(used.parse()?))
    }

    /// The processes in it and below it.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        pids_below(&self.path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

pub(crate) fn pids_below(path: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for folder in tree(path) {
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    pids
}

/// The group and all below it, deepest last.
fn tree(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_path_buf()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        next += 1;
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        found.extend(
            entries
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path()),
        );
    }
    found
}

/// For cgroup v1, which can't be killed as a whole.
fn kill_each(path: &Path) {
    for pid in pids_below(path) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Kills what is in a group and below it and removes them all. A group that is gone
/// already is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let killed = fs::write(path.join("cgroup.kill"), "1").is_ok();
    let what = format!("cgroup {} to go", path.display());
    wait::until_true(&what, Duration::from_secs(5), || {
        if !killed {
            kill_each(path);
        }
        for folder in tree(path).iter().rev() {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(true)
    })
}
