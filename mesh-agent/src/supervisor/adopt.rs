//! Finding what an earlier supervisor left: running workers, and the pods' namespaces.

use std::path::{Path, PathBuf};

use super::netns::{Netns, NetnsId};
use super::pods::PodRecord;
use super::shared::Shared;
use crate::sandbox::cgroup::PodCgroup;
use crate::sandbox::{self, Expected, Newborn};

/// The worker in a pod's cgroup, if there is one that passes every check. A worker that
/// doesn't is left alone by the sandbox, and killed here: a pod has one worker, and what
/// can't be spoken to can't serve.
pub(super) fn find(cgroup: &PodCgroup, uid: u32) -> Option<Newborn> {
    let processes = match cgroup.processes() {
        Ok(processes) => processes,
        Err(e) => {
            tracing::error!(error = %e, "the processes of a worker's cgroup can't be listed");
            return None;
        }
    };
    let expected = Expected {
        cgroup: cgroup.path(),
        uid,
    };
    let mut found = None;
    for pid in processes {
        match sandbox::adopt(pid, expected) {
            Ok(worker) if found.is_none() => found = Some(worker),
            Ok(worker) => {
                tracing::warn!(
                    pid,
                    cgroup = cgroup.path(),
                    "a second worker of one pod: killing it"
                );
                let _ = worker.signal(nix::sys::signal::Signal::SIGKILL);
            }
            Err(e) => tracing::warn!(pid, error = %e, "not adopted"),
        }
    }
    if found.is_none()
        && let Err(e) = cgroup.kill()
    {
        tracing::error!(error = %e, "what is left in a worker's cgroup can't be killed");
    }
    found
}

/// The pod's namespace: by its path or, where that is gone, by its worker.
pub(super) fn open_netns(shared: &Shared, record: &PodRecord) -> Result<Netns, String> {
    let by_path = open_as(&record.netns, record.netns_id);
    by_path.or_else(|why| {
        let cgroup = shared.mesh_cgroup.existing(&record.key.joined());
        let workers = cgroup
            .and_then(|cgroup| cgroup.processes())
            .unwrap_or_default();
        let paths = workers
            .iter()
            .map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
        let by_worker = paths
            .map(|path| open_as(&path, record.netns_id))
            .find_map(Result::ok);
        by_worker.ok_or(why)
    })
}

fn open_as(path: &Path, expected: NetnsId) -> Result<Netns, String> {
    let netns = Netns::open(path).map_err(|e| e.to_string())?;
    if netns.id != expected {
        return Err(format!(
            "{} is not the network namespace any more that the pod was added with: remove the pod and add it anew",
            path.display()
        ));
    }
    Ok(netns)
}
