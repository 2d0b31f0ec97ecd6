//! What a runtime leaves that is killed: mounts below its folders, sockets of shims, records of
//! networks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

/// Where libcni keeps what plugins answered, whatever the runtime's own folders are.
const CNI_RESULTS: &str = "/var/lib/cni/results";
/// Where containerd has shims' sockets, whatever its own folders are.
const SHIM_SOCKETS: &str = "/run/containerd/s";
/// Where a runtime keeps a folder for each task, below its state.
const TASKS: &str = "io.containerd.runtime.v2.task/k8s.io";

/// Releases all that is outside of a lab's folder or mounted in it; the processes are killed
/// already.
pub(crate) fn release(folder: &Path) {
    remove_shim_sockets(folder);
    for mount in mounts_below(folder).unwrap_or_default().iter().rev() {
        if let Err(error) = umount2(Path::new(mount), MntFlags::MNT_DETACH) {
            eprintln!("cleaning up: {mount}: {error}");
        }
    }
    // A result has the path of the pod's network namespace, which is below the folder.
    let own = folder.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten() {
        let result = fs::read(entry.path()).unwrap_or_default();
        if result.windows(own.len()).any(|part| part == own) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Each task's folder names its shim's socket. `folder` is a host's or a lab's, with all hosts'.
fn remove_shim_sockets(folder: &Path) {
    let below = fs::read_dir(folder).into_iter().flatten().flatten();
    let hosts = below.map(|entry| entry.path());
    for host in hosts.chain([folder.to_owned()]) {
        let tasks = host.join("runtime/state").join(TASKS);
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let address = fs::read_to_string(task.path().join("address")).unwrap_or_default();
            let socket = address.trim().trim_start_matches("unix://");
            if socket.starts_with(SHIM_SOCKETS) {
                let _ = fs::remove_file(socket);
            }
        }
    }
}

/// Mount points below a folder, in the order in which they were mounted.
pub(super) fn mounts_below(folder: &Path) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let below = points.filter(|point| PathBuf::from(point).starts_with(folder));
    Ok(below.map(str::to_owned).collect())
}
