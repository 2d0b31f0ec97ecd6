//! The node's processes, by their network namespaces.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::netns::NetnsId;

/// Path of a process's network namespace.
pub(super) fn netns_path(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// All processes of the node. One that ends meanwhile may be among them.
pub(super) fn all() -> io::Result<impl Iterator<Item = i32>> {
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// A process in this network namespace that is none of `except`.
pub(super) fn in_netns(netns: NetnsId, except: &[i32]) -> io::Result<Option<i32>> {
    let mut others = all()?.filter(|pid| !except.contains(pid));
    Ok(others.find(|pid| is_in(*pid, netns)))
}

/// Whether a process is in this network namespace.
pub(super) fn is_in(pid: i32, netns: NetnsId) -> bool {
    let found = fs::metadata(netns_path(pid));
    found.is_ok_and(|found| (found.dev(), found.ino()) == (netns.device, netns.inode))
}
