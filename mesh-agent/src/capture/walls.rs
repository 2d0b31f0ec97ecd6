//! The walls on the host's side of a pod's veth: one for what leaves the pod, one for what
//! comes to it.

use aya::programs::ProgramFd;
use aya::programs::tc::TcAttachType;
use mesh_common::{WALL_DEVICE_DOWN, WallConfig, map_name};

use super::abi::{self, Abi};
use super::bpf::{AttachType, Target};
use super::error::{self, Result};
use super::object::{self, Updated};
use super::pins::Pins;
use super::pods::{absent, check};
use super::{Capture, clsact, device, pins};

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

    pub(super) fn link(self, ifindex: u32) -> String {
        format!("{}-{ifindex}", self.program)
    }
}

impl Capture {
    /// Puts the walls on the host's side of a pod's veth, in the caller's network namespace,
    /// before every other tc program. Does nothing but update `wall` where they stand.
    ///
    /// # Errors
    /// If the device is gone or the kernel refuses.
    pub fn attach_wall(&mut self, ifindex: u32, wall: WallConfig) -> Result<()> {
        let missing = self.prepare_wall(ifindex, wall)?;
        missing.into_iter().try_for_each(MissingWall::attach)
    }

    /// As [`Self::attach_wall`], but what the kernel takes its time for is left to the caller, who
    /// can do it without the capture: the walls that don't stand yet.
    ///
    /// # Errors
    /// As there.
    pub fn prepare_wall(&mut self, ifindex: u32, wall: WallConfig) -> Result<Vec<MissingWall>> {
        check(wall.slot)?;
        let before = self.maps.walls.get(&ifindex, 0).map(|Abi(wall)| wall.flags);
        let down = before.unwrap_or_default() & WALL_DEVICE_DOWN;
        let flags = wall.flags | down;
        self.put_wall(ifindex, WallConfig { flags, ..wall })?;
        let missing = WALLS.map(|wall| self.prepare_one(ifindex, wall));
        missing.into_iter().filter_map(Result::transpose).collect()
    }

    pub(super) fn put_wall(&mut self, ifindex: u32, wall: WallConfig) -> Result<()> {
        self.maps
            .walls
            .insert(ifindex, Abi(wall), 0)
            .map_err(abi::failed(map_name::WALLS))
    }

    /// From now on walls are put up as filters of the clsact qdisc even where the kernel has tcx:
    /// before Linux 6.6 there is no other way, and so it can be tested anywhere.
    pub fn use_clsact(&mut self) {
        self.has_tcx = false;
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
    /// undone. A device that refuses is left to [`Self::check`], which cuts its pod off: one pod
    /// must not keep the agent from starting. Returns how many walls there are.
    pub(super) fn update_walls(&mut self) -> Result<usize> {
        let mut count = 0;
        for (ifindex, _) in self.walls()? {
            // A device that went away while no agent ran needs no wall.
            if device::name(ifindex).is_none() {
                continue;
            }
            for wall in WALLS {
                if self.attach_one(ifindex, wall).is_err() {
                    self.watch.distrust(&wall.link(ifindex));
                }
                count += 1;
            }
        }
        Ok(count)
    }

    /// Takes a device's walls off; what isn't there is no error.
    pub(super) fn detach_walls(&mut self, ifindex: u32, results: &mut Vec<Result<()>>) {
        let known = self.maps.walls.get(&ifindex, 0).is_ok();
        for wall in WALLS {
            let link = wall.link(ifindex);
            results.push(pins::remove_link(&self.pins.link(&link)));
            self.watch.forget(&link);
            if known {
                results.push(clsact::detach(ifindex, wall));
            }
        }
        let entry = absent(self.maps.walls.remove(&ifindex));
        results.push(entry.map_err(abi::failed(map_name::WALLS)));
    }

    pub(super) fn attach_one(&mut self, ifindex: u32, wall: Wall) -> Result<()> {
        let missing = self.prepare_one(ifindex, wall)?;
        missing.map_or(Ok(()), MissingWall::attach)
    }

    /// `None` if it stands: as a link that runs this agent's program, or as a filter.
    fn prepare_one(&mut self, ifindex: u32, wall: Wall) -> Result<Option<MissingWall>> {
        let program = object::load_once(&mut self.object, wall.program)?;
        let link = wall.link(ifindex);
        self.watch.forget(&link);
        if object::update(&self.pins, &link, program)? != Updated::Gone {
            return Ok(None);
        }
        pins::remove_link(&self.pins.link(&link))?;
        if !self.has_tcx {
            return clsact::attach(&mut self.object, ifindex, wall).map(|()| None);
        }
        let program = program.try_clone();
        let program = program.map_err(error::io("keeping the program for", &link))?;
        Ok(Some(MissingWall {
            pins: self.pins.clone(),
            link,
            program,
            ifindex,
            way: wall.tcx,
        }))
    }
}

/// A wall that is to be put up.
#[derive(Debug)]
#[must_use = "it doesn't stand before it is attached"]
pub struct MissingWall {
    pins: Pins,
    link: String,
    program: ProgramFd,
    ifindex: u32,
    way: AttachType,
}

impl MissingWall {
    /// Puts it up. The kernel waits for running programs, some 10 ms.
    ///
    /// # Errors
    /// If the device is gone or the kernel refuses.
    pub fn attach(self) -> Result<()> {
        let target = Target::Ifindex(self.ifindex);
        object::attach(&self.pins, &self.link, &self.program, &target, self.way)
    }
}
