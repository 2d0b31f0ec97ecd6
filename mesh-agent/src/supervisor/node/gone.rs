//! Pods that end without anybody saying so: their network namespaces are gone.
//!
//! A runtime takes the namespace away after the plugin's DEL, which doesn't wait for an agent that
//! is away. A worker is in the namespace as well, and keeps it: so what counts is that neither the
//! name by which it was added is there any more nor a process but the pod's own worker.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use metrics::counter;

use super::{Node, Pod};
use crate::supervisor::pods::{PodKey, PodRecord};
use crate::supervisor::processes;

/// How often it is looked for pods that are gone.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

impl Node {
    /// Takes out the pods that are gone, of those that a runtime told of or that were found. One
    /// that an operator added stays until the operator removes it.
    pub(super) fn forget_gone(&mut self) {
        let gone: Vec<PodKey> = self
            .pods
            .iter()
            .filter(|(_, pod)| !pod.removing && pod.record.origin.comes_and_goes())
            .filter(|(_, pod)| self.is_gone(pod))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            tracing::info!(pod = %key, "its network namespace is gone: it is taken out");
            counter!("nodemesh_pods_gone_total").increment(1);
            self.take_out(&key);
        }
    }

    fn is_gone(&self, pod: &Pod) -> bool {
        let record = &pod.record;
        if !name_is_gone(record) {
            return false;
        }
        let cgroup = self.shared.mesh_cgroup.existing(&record.key.joined());
        let workers = cgroup.and_then(|cgroup| cgroup.processes());
        let workers = workers.unwrap_or_default();
        // What can't be told is not gone.
        matches!(processes::in_netns(record.netns_id, &workers), Ok(None))
    }
}

fn name_is_gone(record: &PodRecord) -> bool {
    match fs::metadata(&record.netns) {
        Ok(found) => {
            let id = record.netns_id;
            (found.dev(), found.ino()) != (id.device, id.inode)
        }
        Err(e) => e.kind() == ErrorKind::NotFound,
    }
}
