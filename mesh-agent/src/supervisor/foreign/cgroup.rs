//! A pod's own cgroup in cgroup v2: the one that kubelet names after the pod's UID, and that a
//! process in the pod's network namespace is in.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesh_common::OwnProcesses;

use crate::supervisor::kubepods;
use crate::supervisor::netns::NetnsId;
use crate::supervisor::processes;

/// A pod's own cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnCgroup {
    folder: PathBuf,
    id: u64,
    level: u32,
}

/// What a search came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Search {
    Found(OwnCgroup),
    /// No process of the pod is in its network namespace (yet), or its UID is not known.
    NoProcess,
    /// They are, and their cgroup in v2 is none of the pod's.
    NotInV2,
}

impl OwnCgroup {
    /// `path` is the cgroup's below `root`, the hierarchy's own.
    fn open(root: &Path, path: &str) -> Option<Self> {
        let path = Path::new(path.trim_start_matches('/'));
        let folder = root.join(path);
        let id = fs::metadata(&folder).ok()?.ino();
        let level = u32::try_from(path.components().count()).ok()?;
        (level > 0).then_some(Self { folder, id, level })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the folder is still the same cgroup.
    pub(super) fn stands(&self) -> bool {
        fs::metadata(&self.folder).is_ok_and(|found| found.ino() == self.id)
    }

    pub(super) fn with(&self, flags: u32) -> OwnProcesses {
        OwnProcesses {
            cgroup_id: self.id,
            cgroup_level: self.level,
            flags,
        }
    }
}

/// Searches the node's processes for one of this pod.
pub(super) fn search(root: &Path, uid: &str, netns: NetnsId) -> Search {
    let mut outcome = Search::NoProcess;
    // What can't be read is as if there were none: the next search is soon.
    let Ok(all) = processes::all() else {
        return outcome;
    };
    for pid in all.filter(|_| !uid.is_empty()) {
        let Ok(cgroups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            continue;
        };
        let of_pod = kubepods::pod_uid(&cgroups).is_some_and(|found| found == uid);
        if !of_pod || !processes::is_in(pid, netns) {
            continue;
        }
        let path = kubepods::own_cgroup(&cgroups, uid);
        match path.and_then(|path| OwnCgroup::open(root, path)) {
            Some(own) => return Search::Found(own),
            None => outcome = Search::NotInV2,
        }
    }
    outcome
}
