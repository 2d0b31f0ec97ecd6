//! What is done to the machine and the kernel for a pod, and how it is undone.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use mesh_api::worker::FdKind;
use mesh_common::{POD_HAS_LISTENER_V6, PodConfig, WallConfig, mapped_v4};
use tokio::time::{Instant, sleep};

use super::discovery::View;
use super::legacy::Legacy;
use super::netns;
use super::pods::{Goal, Placed, PodRecord};
use super::ports;
use super::report::PodState;
use super::workers::PodTask;
use crate::sandbox::cgroup::{Budget, PodCgroup};

/// What one worker may use.
const WORKER_BUDGET: Budget = Budget {
    cpu_weight: 100,
    memory_max_bytes: 1024 * 1024 * 1024,
    pids_max: 32,
};
/// How often and how long the removal of an emptied cgroup is tried: the kernel takes a
/// moment to let go of a dead process.
const CGROUP_RETRY: Duration = Duration::from_millis(5);
const CGROUP_PATIENCE: Duration = Duration::from_secs(2);

impl PodTask {
    /// Whether the kernel captures this pod as its record says.
    pub(super) fn is_captured(&self) -> bool {
        let Some(cgroup) = self.cgroup.as_ref().map(PodCgroup::id) else {
            return false;
        };
        let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
        let enrolled = self.shared.capture().enrolled();
        enrolled.is_ok_and(|all| {
            all.iter().any(|(netns, pod)| {
                *netns == cookie && pod.slot == slot && pod.worker_cgroup_id == cgroup
            })
        })
    }

    pub(super) fn try_place(&mut self, has_worker: bool) -> Result<(), String> {
        let facts = netns::inspect(&self.netns, &self.goal.addresses).map_err(|e| e.to_string())?;
        if !has_worker {
            let taken = ports::taken(&self.netns).map_err(|e| e.to_string())?;
            if !taken.is_empty() {
                return Err(format!(
                    "an app of the pod listens on {taken:?}, which the mesh needs (15001, 15006, 15008, 15053): give the app another port"
                ));
            }
        }
        let key = &self.record.key;
        let cgroup = self
            .shared
            .mesh_cgroup
            .pod(&key.namespace, &key.name, WORKER_BUDGET);
        let cgroup = cgroup.map_err(|e| e.to_string())?;
        for line in cgroup.unenforced() {
            tracing::warn!(pod = %key, "{line}");
        }
        let wall = WallConfig {
            worker_cgroup_id: cgroup.id(),
            slot: self.record.slot,
            flags: 0,
            address_v4: first_v4(&self.goal),
            address_v6: first_v6(&self.goal),
        };
        let ports_added = self
            .record
            .placed
            .take()
            .map(|p| p.ports_added)
            .unwrap_or_default();
        self.record.placed = Some(Placed {
            goal: self.goal.clone(),
            flags: facts.flags,
            walls: facts.walls.clone(),
            ports_added,
            certificate: Vec::new(),
        });
        self.save();
        self.cgroup = Some(cgroup);
        let added = ports::reserve(&self.netns).map_err(|e| e.to_string())?;
        if let Some(placed) = self.record.placed.as_mut().filter(|_| !added.is_empty()) {
            placed.ports_added.extend(added);
            self.save();
        }
        let slot = self.record.slot;
        self.shared.kernel.forget(slot);
        self.rules.kernel_was_emptied();
        let prepared = self.shared.capture().prepare_pod(slot);
        prepared.map_err(|e| e.to_string())?;
        // Before the walls, which let no UDP pass without: what policy allows an app goes on.
        let discovery = self.shared.discovery.clone();
        if let Some(view) = discovery.known() {
            self.follow_discovery(&view);
        }
        self.shared.kernel.settle(&self.shared, slot)?;
        let mut capture = self.shared.capture();
        for ifindex in facts.walls {
            capture
                .attach_wall(ifindex, wall)
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Steers the pod's traffic to its worker. Changes nothing where that is so already.
    pub(super) fn enrol(&mut self) -> Result<(), String> {
        // Before its first packet is captured, so that no UDP passes that policy doesn't name.
        self.shared.kernel.settle(&self.shared, self.record.slot)?;
        self.steer()
    }

    fn steer(&self) -> Result<(), String> {
        let (Some(placed), Some(cgroup)) = (&self.record.placed, &self.cgroup) else {
            return Err("the pod is not prepared".to_owned());
        };
        let v4 = self.legacy.listener(FdKind::PlaintextV4);
        let v4 = v4.ok_or("the worker has no IPv4 listener for inbound")?;
        let v6 = self.legacy.listener(FdKind::PlaintextV6);
        let mut flags = placed.flags;
        if self.legacy.listener(FdKind::OutboundV6).is_some() {
            flags |= POD_HAS_LISTENER_V6;
        }
        let slot = self.record.slot;
        let (v4_address, v6_address) = (first_v4(&self.goal), first_v6(&self.goal));
        let pod = PodConfig::new(cgroup.id(), slot, flags, v4_address, v6_address);
        let mut capture = self.shared.capture();
        capture
            .set_listeners(slot, v4, v6)
            .map_err(|e| e.to_string())?;
        capture
            .steer(slot, self.netns.as_fd())
            .map_err(|e| e.to_string())?;
        capture
            .enrol(self.record.netns_id.cookie, pod)
            .map_err(|e| e.to_string())
    }

    /// Takes in what discovery says now, and has the kernel follow it; whether a worker is to be
    /// told.
    pub(super) fn follow_discovery(&mut self, view: &View) -> bool {
        let news = self.rules.refresh(view, &self.goal.uid);
        if let Some((rules, source)) = self.rules.for_kernel(view) {
            if rules.policy.left_out > 0 {
                let (pod, left_out) = (&self.record.key, rules.policy.left_out);
                tracing::warn!(
                    %pod,
                    left_out,
                    "the kernel has no room for all address blocks of the pod's policy: the worker decides on their TCP, their UDP is refused"
                );
            }
            self.shared.kernel.want(self.record.slot, rules, source);
        }
        news
    }

    /// Takes away everything that was done for the pod. Its worker is gone already.
    pub(super) async fn leave(mut self) -> PodRecord {
        self.report.send_modify(|report| {
            report.state = PodState::Leaving;
            report.reason = "it is being taken out of the mesh".to_owned();
            report.ready = false;
        });
        if let Some(placed) = self.record.placed.take() {
            let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
            self.shared.kernel.forget(slot);
            if let Err(e) = self.shared.capture().withdraw(cookie, slot, &placed.walls) {
                tracing::error!(pod = %self.record.key, error = %e, "the pod's capture could not be removed");
            }
            if let Err(e) = ports::release(&self.netns, &placed.ports_added) {
                tracing::warn!(pod = %self.record.key, error = %e, "the mesh's ports stay reserved in the pod");
            }
        }
        self.legacy = Legacy::default();
        if let Some(cgroup) = self.cgroup.take()
            && let Err(why) = remove_cgroup(cgroup).await
        {
            tracing::error!(pod = %self.record.key, why, "the worker's cgroup stays");
        }
        self.save();
        tracing::info!(pod = %self.record.key, "out of the mesh");
        self.record
    }
}

/// Kills what is left in a cgroup and removes it.
pub(super) async fn remove_cgroup(cgroup: PodCgroup) -> Result<(), String> {
    let deadline = Instant::now() + CGROUP_PATIENCE;
    cgroup.kill().map_err(|e| e.to_string())?;
    loop {
        match cgroup.clone().remove() {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() >= deadline => return Err(e.to_string()),
            Err(_) => sleep(CGROUP_RETRY).await,
        }
    }
}

fn first_v4(goal: &Goal) -> [u8; 16] {
    let found = goal.addresses.iter().find_map(|a| match a {
        IpAddr::V4(v4) => Some(mapped_v4(v4.octets())),
        IpAddr::V6(_) => None,
    });
    found.unwrap_or_default()
}

fn first_v6(goal: &Goal) -> [u8; 16] {
    let found = goal.addresses.iter().find_map(|a| match a {
        IpAddr::V6(v6) => Some(v6.octets()),
        IpAddr::V4(_) => None,
    });
    found.unwrap_or_default()
}
