//! What the admin socket asks of the main task.

use std::path::Path;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::Node;
use crate::supervisor::admin::Ask;
use crate::supervisor::netns::Netns;
use crate::supervisor::pods::{PodKey, PodRecord, free_slot};
use crate::supervisor::report::{PodReport, StatusReport};
use crate::supervisor::unload::clear_away;

impl Node {
    pub(super) fn hear(&mut self, ask: Ask) {
        match ask {
            Ask::Add {
                namespace,
                name,
                netns,
                reply,
            } => {
                let _ = reply.send(self.add(&namespace, &name, &netns));
            }
            Ask::Remove {
                namespace,
                name,
                reply,
            } => self.remove(&namespace, &name, reply),
            Ask::Status { reply } => drop(reply.send(self.status())),
            Ask::Roll { all, reply } => {
                self.shared.roll.by_hand(&self.shared, all);
                let _ = reply.send(self.status());
            }
        }
    }

    fn add(
        &mut self,
        namespace: &str,
        name: &str,
        path: &Path,
    ) -> Result<watch::Receiver<PodReport>, String> {
        let key = PodKey::new(namespace, name)?;
        let netns = Netns::open(path).map_err(|e| e.to_string())?;
        let paired = self
            .pods
            .values()
            .find(|pod| pod.record.netns_id == netns.id);
        match paired {
            Some(pod) if pod.record.key == key && !pod.removing => {
                return Ok(pod.report.subscribe());
            }
            Some(pod) if pod.record.key == key => {
                return Err(format!("{key} is being removed; try again"));
            }
            Some(pod) => {
                let other = &pod.record.key;
                return Err(format!(
                    "{} is the network namespace of {other}; two pods can't share one, remove {other} first",
                    path.display()
                ));
            }
            None => {}
        }
        if let Some(pod) = self.pods.get(&key) {
            let known = pod.record.netns.display();
            return Err(format!(
                "{key} was added with another network namespace ({known}): remove it first"
            ));
        }
        let slot = self.free_slot()?;
        let record = PodRecord::new(key.clone(), path.to_owned(), netns.id, slot);
        self.shared.records.save(&record)?;
        tracing::info!(pod = %key, netns = %path.display(), slot, "pod added");
        self.insert(record);
        self.reconcile();
        let pod = self.pods.get(&key).ok_or("the pod is gone")?;
        Ok(pod.report.subscribe())
    }

    /// A slot that neither a pod has nor anything in the kernel, such as what is left of a
    /// pod whose record is lost.
    fn free_slot(&self) -> Result<u32, String> {
        let capture = self.shared.capture();
        let enrolled = capture.enrolled().map_err(|e| e.to_string())?;
        let walls = capture.walls().map_err(|e| e.to_string())?;
        let known = self.pods.values().map(|pod| pod.record.slot);
        let enrolled = enrolled.iter().map(|(_, pod)| pod.slot);
        let walls = walls.iter().map(|(_, wall)| wall.slot);
        free_slot(known.chain(enrolled).chain(walls))
            .ok_or_else(|| "this agent has as many pods as it can enrol".to_owned())
    }

    fn remove(&mut self, namespace: &str, name: &str, reply: oneshot::Sender<Result<(), String>>) {
        let key = match PodKey::new(namespace, name) {
            Ok(key) => key,
            Err(why) => return drop(reply.send(Err(why))),
        };
        // As CNI wants it: what isn't there is removed already.
        let Some(pod) = self.pods.get_mut(&key) else {
            return drop(reply.send(Ok(())));
        };
        pod.removal.push(reply);
        pod.removing = true;
        if let Some(running) = &mut pod.running {
            running.leave(Duration::ZERO);
            return;
        }
        if pod.record.placed.is_some() {
            // Its namespace could not be opened, so it has no task: clean up without it.
            let record = pod.record.clone();
            let shared = self.shared.clone();
            let handle = self.tasks.spawn(clear_away(shared, record));
            self.names.insert(handle.id(), key);
            return;
        }
        self.forget(&key);
    }

    pub(super) fn forget(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.remove(key) else {
            return;
        };
        let outcome = self.shared.records.delete(key).map_err(|e| {
            format!("{key} is out of the mesh, but its record could not be deleted: {e}")
        });
        tracing::info!(pod = %key, "pod removed");
        for reply in pod.removal {
            let _ = reply.send(outcome.clone());
        }
        self.publish();
    }

    fn status(&self) -> StatusReport {
        StatusReport {
            node: self.shared.config.node.clone(),
            instance: self.shared.config.instance.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control: self.shared.control.report(),
            roll: self.shared.roll.report(&self.shared),
            pods: self
                .pods
                .values()
                .map(|pod| {
                    let report = pod.report.borrow().clone();
                    report.with_usage(&self.shared.mesh_cgroup)
                })
                .collect(),
        }
    }
}
