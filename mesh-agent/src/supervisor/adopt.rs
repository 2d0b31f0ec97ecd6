//! Finding the workers that an earlier supervisor left running.

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
