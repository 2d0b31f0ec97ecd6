//! What a worker has used, as its cgroup counts it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{MeshCgroup, PodCgroup, component};
use crate::sandbox::cgroup::mounts::Controller;

/// Where each version of the hierarchy has the memory in use.
const MEMORY_IN: [&str; 2] = ["memory.current", "memory.usage_in_bytes"];

/// What the workers of a pod have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all of them since the cgroup exists, in microseconds.
    pub cpu_us: u64,
    /// Memory in use now, in bytes, kernel memory included; 0 without a memory controller.
    pub memory_bytes: u64,
}

impl MeshCgroup {
    /// What a pod's workers have used, by their cgroup's own name; `None` if there is none.
    #[must_use]
    pub fn usage(&self, child: &str) -> Option<Usage> {
        let child = component(child).ok()?;
        let folder = self.folder().join(child);
        // In version 2 every cgroup counts its CPU time, whoever has the controller.
        let stat = fs::read_to_string(folder.join("cpu.stat")).ok()?;
        let mut lines = stat.lines();
        let cpu_us = lines.find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())?;
        let v1 = self.mounts.v1(Controller::Memory);
        let v1 = v1.map(|mount| mount.join(&self.name).join(child));
        let memory = memory_bytes(&folder).or_else(|| memory_bytes(&v1?));
        Some(Usage {
            cpu_us,
            memory_bytes: memory.unwrap_or(0),
        })
    }
}

impl PodCgroup {
    /// The file with the memory in use, in bytes as text, open for reading; `None` where no memory
    /// controller limits it.
    #[must_use]
    pub fn memory_used(&self) -> Option<File> {
        let files = self.folders.iter().flat_map(|folder| memory_files(folder));
        files.filter_map(|file| File::open(file).ok()).next()
    }
}

fn memory_files(folder: &Path) -> [PathBuf; 2] {
    MEMORY_IN.map(|file| folder.join(file))
}

/// Memory in use in a cgroup; `None` without a memory controller.
pub(super) fn memory_bytes(folder: &Path) -> Option<u64> {
    let texts = memory_files(folder)
        .into_iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    texts.filter_map(|text| text.trim().parse().ok()).next()
}
