//! Cutting a pod off that is to be in the mesh and can't be served: what of it the kernel can
//! keep from the network is kept from it, until it can be served.

use std::collections::BTreeSet;
use std::io;

use mesh_common::{POD_CUT_OFF, PodConfig, WALL_CUT_OFF, WallConfig};
use mesh_core::model::Enrolment;

use super::devices::{Bare, Devices};
use super::netlink;
use super::placement::{first_v4, first_v6};
use super::pods::Placed;
use super::ports;
use super::report::PodState;
use super::tamper::{Outcome, noticed};
use super::unserved::{OnUnserved, Unserved};
use super::workers::PodTask;
use crate::capture::CaptureError;
use crate::sandbox::cgroup::PodCgroup;

impl PodTask {
    /// What becomes of a pod that can't be served: it is cut off, or left alone. Whether it is
    /// cut off now. Doing so again changes nothing.
    pub(super) fn unserved(&mut self, why: Unserved, devices: Option<&Devices>) -> bool {
        let cut_off = self.is_to_be_cut_off();
        let outcome = match cut_off {
            false => {
                self.leave_alone();
                Outcome::Standing
            }
            true => match self.cut_off(devices) {
                Ok(()) => Outcome::CutOff,
                Err(e) => {
                    tracing::error!(pod = %self.record.key, error = e, "the pod could not be cut off wholly; trying on");
                    Outcome::Standing
                }
            },
        };
        let text = why.to_string();
        if cut_off {
            self.report.send_if_modified(|report| {
                let news = report.state != PodState::CutOff || report.reason != text;
                report.state = PodState::CutOff;
                report.ready = false;
                report.reason.clone_from(&text);
                news
            });
        }
        let told = Some((why, outcome));
        if self.told != told {
            if let Some((why, outcome)) = &told {
                noticed(Some(&self.record.key), why.kind(), *outcome, &text);
            }
            self.told = told;
        }
        cut_off
    }

    /// In audit nothing is kept from a pod. What isn't known yet is taken for `enforce`.
    fn is_to_be_cut_off(&self) -> bool {
        let audited = self.shared.discovery.known().is_some_and(|view| {
            let workload = view.mesh.workload(&self.goal.uid);
            workload.is_some_and(|workload| workload.enrolment == Enrolment::Audit)
        });
        self.shared.config.unserved == OnUnserved::CutOff && !audited
    }

    /// `devices`: those to be shut; without, the ones that are walled already.
    fn cut_off(&mut self, devices: Option<&Devices>) -> Result<(), String> {
        let fresh = self.in_kernel().is_none();
        let mut results = vec![self.make_cgroup()];
        let before = self.record.placed.take();
        let mut walls: BTreeSet<u32> = before.iter().flat_map(|p| &p.walls).copied().collect();
        if let Some(devices) = devices {
            walls = devices.walls.iter().copied().collect();
        }
        let placed = before.unwrap_or_else(|| Placed {
            goal: self.goal.clone(),
            flags: 0,
            walls: Vec::new(),
            unwalled: false,
            ports_added: Vec::new(),
            certificate: Vec::new(),
        });
        self.record.placed = Some(Placed {
            walls: walls.iter().copied().collect(),
            unwalled: false,
            ..placed
        });
        self.save();
        self.cut = true;
        if fresh {
            results.push(self.empty_slot());
        }
        let pod = self.pod_config(POD_CUT_OFF);
        let enrolled = self
            .shared
            .capture()
            .enrol(self.record.netns_id.cookie, pod);
        results.push(enrolled.map_err(|e| e.to_string()));
        for ifindex in walls {
            results.push(
                self.put_wall(ifindex, WALL_CUT_OFF)
                    .map_err(|e| e.to_string()),
            );
        }
        let bare = devices.map(|devices| devices.bare.as_slice());
        results.push(
            self.shut(bare.unwrap_or_default())
                .map_err(|e| e.to_string()),
        );
        results.push(self.reserve_ports());
        results.into_iter().collect()
    }

    fn shut(&self, bare: &[Bare]) -> Result<(), super::netns::NetnsError> {
        if bare.is_empty() {
            return Ok(());
        }
        let slot = self.record.slot;
        let mut capture = self.shared.capture();
        let capture = &mut *capture;
        self.netns.inside("shutting a device", || {
            let mut results = bare.iter().map(|b| capture.shut_device(slot, b.index));
            results
                .try_for_each(|result| result)
                .map_err(io::Error::other)
        })
    }

    /// The pod's devices are not shut any more.
    pub(super) fn reopen(&self) -> Result<(), String> {
        let slot = self.record.slot;
        let mut capture = self.shared.capture();
        let capture = &mut *capture;
        let reopened = self.netns.inside("opening the pod's devices", || {
            let links = netlink::links(usize::MAX)?;
            let indexes: Vec<u32> = links.iter().map(|link| link.index).collect();
            capture
                .reopen_devices(slot, &indexes)
                .map_err(io::Error::other)
        });
        reopened.map_err(|e| e.to_string())
    }

    /// A pod that was cut off goes its own way again: it is in audit now.
    fn leave_alone(&mut self) {
        if !std::mem::take(&mut self.cut) {
            return;
        }
        if let Err(e) = self.reopen() {
            tracing::error!(pod = %self.record.key, error = e, "the pod's devices stay shut");
        }
        let walls = self.record.placed.take().map(|p| p.walls);
        let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
        let withdrawn = self
            .shared
            .capture()
            .withdraw(cookie, slot, &walls.unwrap_or_default());
        if let Err(e) = withdrawn {
            tracing::error!(pod = %self.record.key, error = %e, "the pod stays cut off");
        }
        self.save();
    }

    /// The pod is served now: its walls let through what they should.
    pub(super) fn lift(&mut self) -> Result<(), CaptureError> {
        if !self.cut {
            return Ok(());
        }
        let walls = self.record.placed.as_ref().map(|p| p.walls.clone());
        for ifindex in walls.unwrap_or_default() {
            self.put_wall(ifindex, 0)?;
        }
        self.cut = false;
        Ok(())
    }

    /// Puts up the walls at these devices of the node, and takes down those of the pod's devices
    /// that are gone.
    pub(super) fn follow_walls(&mut self, walls: &[u32]) -> Result<(), CaptureError> {
        let Some(placed) = &mut self.record.placed else {
            return Ok(());
        };
        if placed.walls == walls {
            return Ok(());
        }
        let before = std::mem::replace(&mut placed.walls, walls.to_vec());
        self.save();
        for &ifindex in walls.iter().filter(|ifindex| !before.contains(ifindex)) {
            self.put_wall(ifindex, 0)?;
        }
        for &ifindex in before.iter().filter(|ifindex| !walls.contains(ifindex)) {
            self.shared.capture().detach_wall(ifindex)?;
        }
        Ok(())
    }

    pub(super) fn put_wall(&self, ifindex: u32, flags: u32) -> Result<(), CaptureError> {
        let wall = self.wall_config(flags);
        self.shared.capture().attach_wall(ifindex, wall)
    }

    pub(super) fn wall_config(&self, flags: u32) -> WallConfig {
        WallConfig {
            worker_cgroup_id: self.cgroup_id(),
            slot: self.record.slot,
            flags,
            address_v4: first_v4(&self.goal),
            address_v6: first_v6(&self.goal),
        }
    }

    pub(super) fn pod_config(&self, flags: u32) -> PodConfig {
        let (v4, v6) = (first_v4(&self.goal), first_v6(&self.goal));
        PodConfig::new(self.cgroup_id(), self.record.slot, flags, v4, v6)
    }

    /// 0, which is no cgroup's, where there is none.
    pub(super) fn cgroup_id(&self) -> u64 {
        self.cgroup.as_ref().map_or(0, PodCgroup::id)
    }

    pub(super) fn reserve_ports(&mut self) -> Result<(), String> {
        let added = ports::reserve(&self.netns).map_err(|e| e.to_string())?;
        let Some(placed) = self.record.placed.as_mut().filter(|_| !added.is_empty()) else {
            return Ok(());
        };
        let known = placed.ports_added.clone();
        placed
            .ports_added
            .extend(added.into_iter().filter(|port| !known.contains(port)));
        self.save();
        Ok(())
    }
}
