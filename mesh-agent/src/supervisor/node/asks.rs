//! What the admin socket asks of the main task.

use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::{Node, Pod};
use crate::supervisor::admin::{AddFault, Ask, PodAdd};
use crate::supervisor::netns::Netns;
use crate::supervisor::pods::{Origin, PodKey, PodRecord, free_slot};
use crate::supervisor::report::{PodReport, StatusReport};
use crate::supervisor::unload::clear_away;

impl Node {
    pub(super) fn hear(&mut self, ask: Ask) {
        match ask {
            Ask::Add { pod, reply } => {
                let _ = reply.send(self.add(&pod));
            }
            Ask::Remove {
                namespace,
                name,
                container,
                reply,
            } => self.remove(&namespace, &name, &container, reply),
            Ask::Status { reply } => drop(reply.send(self.status())),
            Ask::Roll { all, reply } => {
                self.shared.roll.by_hand(&self.shared, all);
                let _ = reply.send(self.status());
            }
        }
    }

    /// Takes a pod up.
    pub(super) fn add(&mut self, pod: &PodAdd) -> Result<watch::Receiver<PodReport>, AddFault> {
        let key = PodKey::new(&pod.namespace, &pod.name)?;
        let netns = Netns::open(&pod.netns).map_err(|e| e.to_string())?;
        let paired = self
            .pods
            .values()
            .find(|pod| pod.record.netns_id == netns.id);
        match paired {
            Some(known) if known.record.key == key && !known.removing => {
                return Ok(known.report.subscribe());
            }
            Some(known) if known.record.key == key => {
                return Err(format!("{key} is being removed; try again").into());
            }
            Some(known) => {
                let other = &known.record.key;
                return Err(format!(
                    "{} is the network namespace of {other}; two pods can't share one, remove {other} first",
                    pod.netns.display()
                )
                .into());
            }
            None => {}
        }
        if let Some(known) = self.pods.get(&key) {
            // A pod has one sandbox at a time: a runtime that makes another has given the first up.
            let PodRecord { netns, origin, .. } = &known.record;
            if !pod.container.is_empty() {
                return Err(AddFault::Superseded(origin.container.clone()));
            }
            let known = netns.display();
            return Err(format!(
                "{key} was added with another network namespace ({known}): remove it first"
            )
            .into());
        }
        let slot = self.free_slot()?;
        let origin = Origin::from(pod);
        let record = PodRecord::new(key.clone(), pod.netns.clone(), netns.id, slot, origin);
        self.shared.records.save(&record)?;
        let running = pod.running;
        tracing::info!(pod = %key, netns = %pod.netns.display(), slot, running, "pod added");
        self.insert(record);
        self.reconcile();
        let pod = self.pods.get(&key).ok_or("the pod is gone".to_owned())?;
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

    fn remove(
        &mut self,
        namespace: &str,
        name: &str,
        container: &str,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        let key = match PodKey::new(namespace, name) {
            Ok(key) => key,
            Err(why) => return drop(reply.send(Err(why))),
        };
        // As CNI wants it: what isn't there is removed already.
        let known = self.pods.get_mut(&key);
        let is_meant = |pod: &&mut Pod| pod.record.origin.is_sandbox(container);
        let Some(pod) = known.filter(is_meant) else {
            return drop(reply.send(Ok(())));
        };
        pod.removal.push(reply);
        self.take_out(&key);
    }

    /// Begins to take a pod out; nothing is left of it when it is forgotten.
    pub(super) fn take_out(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.get_mut(key) else {
            return;
        };
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
            self.names.insert(handle.id(), key.clone());
            return;
        }
        self.forget(key);
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
            cni_fault: self.shared.cni_fault.borrow().clone(),
            kubelet: self.shared.kubelet.borrow().clone(),
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
