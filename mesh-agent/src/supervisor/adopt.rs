//! Finding what an earlier supervisor left: running workers, and the pods' namespaces.

use std::path::{Path, PathBuf};

use super::netns::{Netns, NetnsId};
use super::pods::{KnownWorker, Part, PodRecord};
use super::shared::Shared;
use crate::sandbox::cgroup::PodCgroup;
use crate::sandbox::{self, Expected, Newborn};

/// The workers in a pod's cgroup that pass every check, each with what it is to the pod: as the
/// pod's record says or, where it says nothing, the oldest serves. One that doesn't pass is left
/// alone by the sandbox, and killed here: what can't be spoken to can't serve.
pub(super) fn find(cgroup: &PodCgroup, uid: u32, known: &[KnownWorker]) -> Vec<(Newborn, Part)> {
    let processes = match cgroup.processes() {
        Ok(processes) => processes,
        Err(e) => {
            tracing::error!(error = %e, "the processes of a worker's cgroup can't be listed");
            return Vec::new();
        }
    };
    let expected = Expected {
        cgroup: cgroup.path(),
        uid,
    };
    let mut found = Vec::new();
    for pid in processes {
        match sandbox::adopt(pid, expected) {
            Ok(worker) => found.push((worker, sandbox::started(pid).unwrap_or(u64::MAX))),
            Err(e) => tracing::warn!(pid, error = %e, "not adopted"),
        }
    }
    if found.is_empty()
        && let Err(e) = cgroup.kill()
    {
        tracing::error!(error = %e, "what is left in a worker's cgroup can't be killed");
    }
    found.sort_by_key(|(_, started)| *started);
    let as_known = |worker: &Newborn, started: u64| {
        let same = |k: &&KnownWorker| k.pid == worker.pid && k.started == started;
        known.iter().find(same).map(|known| known.part)
    };
    let parts = assign(found.iter().map(|(worker, at)| as_known(worker, *at)));
    let mut workers = Vec::new();
    for ((worker, _), part) in found.into_iter().zip(parts) {
        match part {
            Some(part) => workers.push((worker, part)),
            None => {
                tracing::warn!(
                    pid = worker.pid,
                    cgroup = cgroup.path(),
                    "one worker of the pod too many: killing it"
                );
                let _ = worker.signal(nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    workers
}

/// What each of a pod's processes is, the oldest first, from what is known of each: one serves, one
/// may be the next, any number drains. `None` for one that has no place.
fn assign(known: impl Iterator<Item = Option<Part>>) -> Vec<Option<Part>> {
    let mut parts: Vec<Option<Part>> = known.collect();
    for wanted in [Part::Serving, Part::Next] {
        if !parts.contains(&Some(wanted))
            && let Some(unknown) = parts.iter_mut().find(|part| part.is_none())
        {
            *unknown = Some(wanted);
        }
    }
    // The one that it was to replace has ended: it takes over as it is.
    if !parts.contains(&Some(Part::Serving))
        && let Some(next) = parts.iter_mut().find(|part| **part == Some(Part::Next))
    {
        *next = Some(Part::Serving);
    }
    parts
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::supervisor::until::Until;

    #[test]
    fn of_two_workers_it_is_known_or_follows_which_is_which() {
        let draining = Part::Draining(Until::after(Duration::ZERO));
        let (serving, next, nothing) = (Some(Part::Serving), Some(Part::Next), None);
        for (known, expected) in [
            (vec![nothing], vec![serving]),
            (vec![nothing, nothing], vec![serving, next]),
            (vec![nothing, nothing, nothing], vec![serving, next, None]),
            (vec![serving, next], vec![serving, next]),
            (vec![Some(draining), serving], vec![Some(draining), serving]),
            (vec![Some(draining), nothing], vec![Some(draining), serving]),
            (vec![serving, nothing], vec![serving, next]),
            (vec![next], vec![serving]),
            (vec![Some(draining)], vec![Some(draining)]),
            (vec![], vec![]),
        ] {
            assert_eq!(assign(known.clone().into_iter()), expected, "{known:?}");
        }
    }
}
