//! What is done to the machine and the kernel for a pod, and how it is undone.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;
use std::{mem, panic, thread};

use mesh_api::worker::FdKind;
use mesh_common::{POD_CUT_OFF, POD_HAS_LISTENER_V6, PodConfig, mapped_v4};
use tokio::time::{Instant, sleep};

use super::devices::Devices;
use super::discovery::View;
use super::grandfather::Grandfathers;
use super::live;
use super::look::Seen;
use super::netns::{self, NetnsError};
use super::pods::{Goal, Placed, PodRecord};
use super::ports;
use super::report::PodState;
use super::unserved::Unserved;
use super::workers::PodTask;
use crate::capture::{CaptureError, MissingWall};
use crate::sandbox::cgroup::PodCgroup;

/// How often and how long the removal of an emptied cgroup is tried: the kernel takes a
/// moment to let go of a dead process.
const CGROUP_RETRY: Duration = Duration::from_millis(5);
const CGROUP_PATIENCE: Duration = Duration::from_secs(2);

/// Why a pod can't be enrolled now.
#[derive(Debug)]
pub(super) enum PlaceFault {
    /// It can't be served safely; with the devices that it has.
    Unserved(Unserved, Devices),
    /// It is not to be told yet whether it can, or the agent itself is in trouble.
    Later(String),
}

impl From<NetnsError> for PlaceFault {
    fn from(error: NetnsError) -> Self {
        Self::Later(error.to_string())
    }
}

impl From<String> for PlaceFault {
    fn from(why: String) -> Self {
        Self::Later(why)
    }
}

impl PodTask {
    /// What the kernel programs are told of this pod, if they know it as its record says.
    pub(super) fn in_kernel(&self) -> Option<PodConfig> {
        let cgroup = self.cgroup.as_ref().map(PodCgroup::id)?;
        let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
        let enrolled = self.shared.capture().enrolled().ok()?;
        let pods = enrolled.into_iter().filter(|(netns, _)| *netns == cookie);
        let mut pods = pods.map(|(_, pod)| pod);
        pods.find(|pod| pod.slot == slot && pod.worker_cgroup_id == cgroup)
    }

    /// Whether the kernel captures this pod as its record says.
    pub(super) fn is_captured(&self) -> bool {
        self.in_kernel()
            .is_some_and(|pod| pod.flags & POD_CUT_OFF == 0)
    }

    /// Prepares everything but the worker.
    pub(super) fn try_place(&mut self, has_worker: bool) -> Result<(), PlaceFault> {
        let facts = netns::inspect(&self.netns, &self.goal.addresses)?;
        let devices = facts.devices;
        if let Some(why) = Unserved::by_devices(&devices.bare) {
            return Err(PlaceFault::Unserved(why, devices));
        }
        if !has_worker && !self.legacy.has_listeners() {
            let taken = ports::taken(&self.netns)?;
            if !taken.is_empty() {
                return Err(PlaceFault::Unserved(Unserved::PortTaken(taken), devices));
            }
        }
        // Whatever it is later: a pod that was walled once has nothing older than its wall.
        let unwalled = match &self.record.placed {
            Some(placed) => placed.unwalled,
            None => self.in_kernel().is_none() && live::is_in_use(&self.netns)?,
        };
        self.make_cgroup()?;
        let ports_added = self
            .record
            .placed
            .take()
            .map(|p| p.ports_added)
            .unwrap_or_default();
        self.record.placed = Some(Placed {
            goal: self.goal.clone(),
            flags: facts.flags,
            walls: devices.walls.clone(),
            unwalled,
            ports_added,
            certificate: Vec::new(),
        });
        self.save();
        self.reserve_ports()?;
        if !has_worker && self.early.is_none() {
            // What keeps it from being born is said when it is asked for.
            self.early = self.spawn().ok();
        }
        let walls = match unwalled {
            true => Ok(Vec::new()),
            false => self.missing_walls(&devices.walls),
        };
        // Each change in the kernel waits until the programs that run have ended, some 10 ms: what
        // doesn't need the other waits at once. A pod without sockets misses nothing if its walls
        // stand before its policy is there.
        let (prepared, walls) = thread::scope(|scope| {
            let walls = scope.spawn(move || {
                let mut missing = walls?.into_iter();
                missing.try_for_each(MissingWall::attach)
            });
            let prepared = self.prepare_slot();
            let walls = walls.join().unwrap_or_else(|e| panic::resume_unwind(e));
            (prepared, walls)
        });
        prepared?;
        if let Err(e) = walls {
            let why = Unserved::Wall(e.to_string());
            return Err(PlaceFault::Unserved(why, devices));
        }
        if self.cut {
            self.reopen()?;
        }
        self.seen = Seen::default();
        Ok(())
    }

    fn missing_walls(&self, devices: &[u32]) -> Result<Vec<MissingWall>, CaptureError> {
        let mut capture = self.shared.capture();
        let wall = self.wall_config(0);
        let missing = devices.iter();
        let missing = missing.map(|&ifindex| capture.prepare_wall(ifindex, wall));
        let missing: Vec<_> = missing.collect::<Result<_, _>>()?;
        Ok(missing.into_iter().flatten().collect())
    }

    /// Fresh maps for the pod's slot, and its policy.
    fn prepare_slot(&mut self) -> Result<(), String> {
        self.empty_slot()?;
        let discovery = self.shared.discovery.clone();
        if let Some(view) = discovery.known() {
            self.follow_discovery(&view);
        }
        self.shared.kernel.settle(&self.shared, self.record.slot)
    }

    /// Fresh maps for the pod's slot.
    pub(super) fn empty_slot(&mut self) -> Result<(), String> {
        let slot = self.record.slot;
        self.shared.kernel.forget(slot);
        self.rules.kernel_was_emptied();
        self.forget_probes();
        let prepared = self.shared.capture().prepare_pod(slot);
        self.foreign.kernel_was_emptied();
        prepared.map_err(|e| e.to_string())
    }

    /// Steers the pod's traffic to its worker. Changes nothing where that is so already.
    pub(super) fn enrol(&mut self) -> Result<(), String> {
        // Before its first packet is captured, so that no UDP passes that policy doesn't name.
        self.shared.kernel.settle(&self.shared, self.record.slot)?;
        self.steer()
    }

    fn steer(&mut self) -> Result<(), String> {
        let Some(placed) = &self.record.placed else {
            return Err("the pod is not prepared".to_owned());
        };
        let v4 = self.legacy.listener(FdKind::PlaintextV4);
        let v4 = v4.ok_or("the worker has no IPv4 listener for inbound")?;
        let v6 = self.legacy.listener(FdKind::PlaintextV6);
        let mut flags = placed.flags;
        if self.legacy.listener(FdKind::OutboundV6).is_some() {
            flags |= POD_HAS_LISTENER_V6;
        }
        let pod = self.pod_config(flags);
        let slot = self.record.slot;
        let unwalled = self.is_unwalled();
        let requests = match unwalled {
            true => self.requests().map_err(|e| e.to_string())?,
            false => Vec::new(),
        };
        let mut capture = self.shared.capture();
        capture
            .set_listeners(slot, v4, v6)
            .map_err(|e| e.to_string())?;
        capture
            .steer(slot, self.netns.as_fd())
            .map_err(|e| e.to_string())?;
        capture
            .enrol(self.record.netns_id.cookie, pod)
            .map_err(|e| e.to_string())?;
        drop(capture);
        self.lift().map_err(|e| e.to_string())?;
        match unwalled {
            true => self.wall_in(requests),
            false => Ok(()),
        }
    }

    /// Takes in what discovery says now, and has the kernel follow it.
    pub(super) fn follow_discovery(&mut self, view: &View) {
        self.rules.refresh(view, &self.goal.uid);
        self.follow_budget(view);
        self.follow_probes(view);
        self.follow_foreign();
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
        self.judge_grandfathers(view);
    }

    /// Takes away everything that was done for the pod. Its worker is gone already.
    pub(super) async fn leave(mut self) -> PodRecord {
        self.report.send_modify(|report| {
            report.state = PodState::Leaving;
            report.reason = "it is being taken out of the mesh".to_owned();
            report.ready = false;
        });
        self.end_early().await;
        if let Some(placed) = self.record.placed.take() {
            let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
            self.shared.kernel.forget(slot);
            if let Err(e) = self.reopen() {
                tracing::error!(pod = %self.record.key, error = e, "the pod's devices may stay shut");
            }
            if let Err(e) = self.shared.capture().withdraw(cookie, slot, &placed.walls) {
                tracing::error!(pod = %self.record.key, error = %e, "the pod's capture could not be removed");
            }
            if let Err(e) = ports::release(&self.netns, &placed.ports_added) {
                tracing::warn!(pod = %self.record.key, error = %e, "the mesh's ports stay reserved in the pod");
            }
        }
        self.forget_probes();
        self.grandfathers = Grandfathers::default();
        self.report_grandfathers();
        let legacy = mem::take(&mut self.legacy);
        let removed = match self.cgroup.take() {
            Some(cgroup) => remove_cgroup(cgroup).await,
            None => Ok(()),
        };
        match removed {
            // Whoever had the listeners has ended. The pod may be added again at once.
            Ok(()) => legacy.close_after_worker(),
            Err(why) => {
                tracing::error!(pod = %self.record.key, why, "the worker's cgroup stays");
            }
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

pub(super) fn first_v4(goal: &Goal) -> [u8; 16] {
    let found = goal.addresses.iter().find_map(|a| match a {
        IpAddr::V4(v4) => Some(mapped_v4(v4.octets())),
        IpAddr::V6(_) => None,
    });
    found.unwrap_or_default()
}

pub(super) fn first_v6(goal: &Goal) -> [u8; 16] {
    let found = goal.addresses.iter().find_map(|a| match a {
        IpAddr::V6(v6) => Some(v6.octets()),
        IpAddr::V4(_) => None,
    });
    found.unwrap_or_default()
}
