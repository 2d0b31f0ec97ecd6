//! The walls on the host's side of a pod's veth: one for what leaves the pod, one for what
//! comes to it.

use aya::programs::tc::TcAttachType;
use mesh_common::{WallConfig, map_name};

use super::abi::{self, Abi};
use super::bpf::{AttachType, Target};
use super::error::{CaptureError, Result};
use super::object::{self, Updated};
use super::pods::{absent, check};
use super::{Capture, clsact, pins};

/// One of the two; its links are `<program>-<ifindex>`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wall {
    pub(super) program: &'static str,
    pub(super) tcx: AttachType,
    pub(super) clsact: TcAttachType,
}

pub(super) const WALLS: [Wall; 2] = [
    Wall::new("wall", AttachType::TcxIngress, TcAttachType::Ingress),
    Wall::new("wall_in", AttachType::TcxEgress, TcAttachType::Egress),
];

impl Wall {
    pub(super) const fn new(program: &'static str, tcx: AttachType, clsact: TcAttachType) -> Self {
        Self {
            program,
            tcx,
            clsact,
        }
    }

    fn link(self, ifindex: u32) -> String {
        format!("{}-{ifindex}", self.program)
    }
}

impl Capture {
    /// Puts the walls on the host's side of a pod's veth, in the caller's network namespace,
    /// before every other tcx program. Does nothing but update `wall` where they stand.
    ///
    /// # Errors
    /// If the device is gone or the kernel refuses.
    pub fn attach_wall(&mut self, ifindex: u32, wall: WallConfig) -> Result<()> {
        check(wall.slot)?;
        self.maps
            .walls
            .insert(ifindex, Abi(wall), 0)
            .map_err(abi::failed(map_name::WALLS))?;
        WALLS
            .into_iter()
            .try_for_each(|wall| self.attach_one(ifindex, wall))
    }

    /// Pods' devices that have walls, by ifindex: for re-adoption.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn walls(&self) -> Result<Vec<(u32, WallConfig)>> {
        self.maps
            .walls
            .iter()
            .map(|entry| entry.map(|(ifindex, Abi(wall))| (ifindex, wall)))
            .collect::<Result<_, _>>()
            .map_err(abi::failed(map_name::WALLS))
    }

    /// Lets every wall run this agent's program, and puts up what an agent that died has left
    /// undone. Returns how many were changed.
    pub(super) fn update_walls(&mut self) -> Result<usize> {
        let mut changed = 0;
        for (ifindex, _) in self.walls()? {
            for wall in WALLS {
                let program = object::load_once(&mut self.object, wall.program)?;
                let updated = object::update(&self.pins, &wall.link(ifindex), program)?;
                // A device that went away while no agent ran needs no wall.
                if updated == Updated::Gone && clsact::device(ifindex).is_some() {
                    self.attach_one(ifindex, wall)?;
                }
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// Takes a device's walls off; what isn't there is no error.
    pub(super) fn detach_walls(&mut self, ifindex: u32, results: &mut Vec<Result<()>>) {
        let known = self.maps.walls.get(&ifindex, 0).is_ok();
        for wall in WALLS {
            results.push(pins::remove_link(&self.pins.link(&wall.link(ifindex))));
            if known {
                results.push(clsact::detach(ifindex, wall));
            }
        }
        let entry = absent(self.maps.walls.remove(&ifindex));
        results.push(entry.map_err(abi::failed(map_name::WALLS)));
    }

    fn attach_one(&mut self, ifindex: u32, wall: Wall) -> Result<()> {
        let program = object::load_once(&mut self.object, wall.program)?;
        let link = wall.link(ifindex);
        if object::update(&self.pins, &link, program)? != Updated::Gone {
            return Ok(());
        }
        pins::remove_link(&self.pins.link(&link))?;
        let target = Target::Ifindex(ifindex);
        match object::attach(&self.pins, &link, program, &target, wall.tcx) {
            // No tcx before Linux 6.6.
            Err(CaptureError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                clsact::attach(&mut self.object, ifindex, wall)
            }
            other => other,
        }
    }
}
