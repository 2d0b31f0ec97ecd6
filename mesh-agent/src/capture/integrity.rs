//! Whether every program is attached as the agent left it, and putting right what isn't.
//!
//! The kernel is asked each time: what a link hangs on and runs, and who else is at the hook. A
//! wall must be the first program of its device, in both directions: one before it could let
//! frames pass, or send them elsewhere, and the wall would not be asked. `sk_lookup` must be the
//! last of its namespace: of several choices the last counts. At cgroups the order is of no
//! consequence to what can pass.
//!
//! What is only in the wrong place is put right without a moment in which nothing stands: a
//! second instance goes where it must be before the first is taken away. Where a wall can't be
//! had, its pod's device is set down: nothing else holds what an app may send.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use mesh_common::{GlobalConfig, POD_CUT_OFF, WALL_DEVICE_DOWN, WallConfig};

use super::bpf::{self, AttachType, LinkInfo, Target};
use super::error::{self, CaptureError, Result};
use super::finding::{Deviation, Finding, Remedy};
use super::object::{self, ATTACHED_ONCE, Place};
use super::pods::steer_link;
use super::walls::{WALLS, Wall};
use super::{Capture, CaptureOptions, ROOT_CGROUP_ID, clsact, device, global_config, pins};

/// How often a wall that the kernel refuses is tried before its pod is cut off.
const TRIES: usize = 3;

/// What a look at one hook found.
type Look = Result<Option<Deviation>>;

impl Capture {
    /// Looks at every hook, and puts right what is not as it was left. Call it in the network
    /// namespace that the walls are in.
    ///
    /// # Errors
    /// If the pins or maps that say what there should be can't be read.
    pub fn check(&mut self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        if let Some(options) = self.watch.options.clone() {
            let config = global_config(&options)?;
            for hook in ATTACHED_ONCE {
                findings.extend(self.check_cgroup(&options, config, hook));
            }
        }
        let enrolled = self.enrolled()?.into_iter();
        // A pod that is cut off may never have had a worker to steer to.
        for (_, pod) in enrolled.filter(|(_, pod)| pod.flags & POD_CUT_OFF == 0) {
            findings.extend(self.check_steering(pod.slot));
        }
        for (ifindex, wall) in self.walls()? {
            self.check_walls(ifindex, wall, &mut findings)?;
        }
        Ok(findings)
    }

    fn check_cgroup(
        &mut self,
        options: &CaptureOptions,
        config: GlobalConfig,
        (name, place, attach_type): (&str, Place, AttachType),
    ) -> Option<Finding> {
        let (folder, cgroup) = match place {
            Place::Root => (&options.cgroup_root, ROOT_CGROUP_ID),
            Place::Mesh => (&options.mesh_cgroup, config.mesh_cgroup_id),
        };
        let looked = self.look_at_link(name, |info| info.cgroup_id() == cgroup);
        let deviation = deviation(looked)?;
        self.watch.forget(name);
        let repaired = self.attach_to_cgroup(name, folder, attach_type);
        Some(Finding {
            slot: None,
            hook: format!("{name} of the cgroup {}", folder.display()),
            deviation,
            remedy: remedy(repaired),
        })
    }

    fn check_steering(&mut self, slot: u32) -> Option<Finding> {
        let link = steer_link(slot);
        let looked = match self.look_at_link(&link, |info| info.target != 0) {
            Ok(None) => self.look_at_steering_order(slot, &link),
            looked => looked,
        };
        let deviation = deviation(looked)?;
        let repaired = self.repair_steering(slot, &link, &deviation);
        Some(Finding {
            slot: Some(slot),
            hook: "sk_lookup of the pod's network namespace".to_owned(),
            deviation,
            remedy: remedy(repaired),
        })
    }

    fn look_at_steering_order(&self, slot: u32, link: &str) -> Look {
        let (Some(netns), Some((_, info))) = (self.watch.namespace(slot), self.link(link)?) else {
            return Ok(None);
        };
        let programs = bpf::programs_at(&Target::Fd(netns), AttachType::SkLookup).map_err(
            error::io("asking for the programs at", self.pins.link(link)),
        )?;
        let last = programs.last() == Some(&info.program_id);
        Ok((!last).then_some(Deviation::Order))
    }

    fn repair_steering(&mut self, slot: u32, link: &str, deviation: &Deviation) -> Result<()> {
        let netns = self.watch.namespace(slot).map(|ns| ns.try_clone_to_owned());
        let path = self.pins.link(link);
        let Some(netns) = netns else {
            let unknown = io::Error::other("the pod's network namespace is not known yet");
            return Err(error::io("attaching", path)(unknown));
        };
        let netns = netns.map_err(error::io("duplicating the namespace of", &path))?;
        match (deviation, self.link(link)?) {
            (Deviation::Order, Some((_, info))) => {
                let program = bpf::program_by_id(info.program_id)
                    .map_err(error::io("opening the program of", &path))?;
                let new = bpf::link_create(
                    program.as_fd(),
                    &Target::Fd(netns.as_fd()),
                    AttachType::SkLookup,
                    0,
                );
                self.swap_link(link, &new.map_err(error::io("attaching", &path))?)
            }
            // The link is made anew.
            _ => {
                pins::remove_link(&path)?;
                self.steer(slot, netns.as_fd())
            }
        }
    }

    /// Puts a link that is attached already in the place of another, if there is one, which is
    /// taken away.
    fn swap_link(&mut self, link: &str, new: &OwnedFd) -> Result<()> {
        let old = object::open_link(&self.pins, link)?;
        let (path, next) = (
            self.pins.link(link),
            self.pins.link(&format!("{link}-next")),
        );
        pins::remove_link(&next)?;
        bpf::pin(new.as_fd(), &next).map_err(error::io("pinning the link", &next))?;
        fs::rename(&next, &path).map_err(error::io("moving the pin to", &path))?;
        self.watch.forget(link);
        old.map_or(Ok(()), |old| bpf::link_detach(old.as_fd()))
            .map_err(error::io("detaching what was before", path))
    }

    fn check_walls(
        &mut self,
        ifindex: u32,
        config: WallConfig,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let mut stand = true;
        for wall in WALLS {
            let looked = self.look_at_wall(ifindex, wall);
            // A device that goes away needs no wall, and takes it along.
            let Some(device) = device::name(ifindex) else {
                return Ok(());
            };
            let Some(deviation) = deviation(looked) else {
                continue;
            };
            let remedy = match self.repair_wall(ifindex, wall, &deviation) {
                Ok(()) => Remedy::Repaired,
                Err(why) => {
                    stand = false;
                    self.cut_off(ifindex, config, &why)
                }
            };
            findings.push(Finding {
                slot: Some(config.slot),
                hook: format!("{} of {device}", wall.program),
                deviation,
                remedy,
            });
        }
        if stand && config.flags & WALL_DEVICE_DOWN != 0 {
            device::set_up(ifindex, true).map_err(error::io("setting up", device_name(ifindex)))?;
            let flags = config.flags & !WALL_DEVICE_DOWN;
            self.put_wall(ifindex, WallConfig { flags, ..config })?;
        }
        Ok(())
    }

    fn look_at_wall(&mut self, ifindex: u32, wall: Wall) -> Look {
        if !self.has_tcx {
            return self.look_at_filter(ifindex, wall);
        }
        let link = wall.link(ifindex);
        if let Some(deviation) = self.look_at_link(&link, |info| info.target == ifindex)? {
            return Ok(Some(deviation));
        }
        let Some((_, info)) = self.link(&link)? else {
            return Ok(Some(Deviation::Detached));
        };
        let programs = bpf::programs_at(&Target::Ifindex(ifindex), wall.tcx).map_err(error::io(
            "asking for the programs at",
            self.pins.link(&link),
        ))?;
        let first = programs.first() == Some(&info.program_id);
        Ok((!first).then_some(Deviation::Order))
    }

    fn look_at_filter(&mut self, ifindex: u32, wall: Wall) -> Look {
        Ok(match clsact::position(ifindex, wall)? {
            None => Some(Deviation::Detached),
            Some((_, program)) if !self.watch.runs_as_before(&wall.link(ifindex), program) => {
                Some(Deviation::Replaced)
            }
            Some((0, _)) => None,
            Some(_) => Some(Deviation::Order),
        })
    }

    fn repair_wall(&mut self, ifindex: u32, wall: Wall, deviation: &Deviation) -> Result<()> {
        let repair = |capture: &mut Self| match deviation {
            Deviation::Replaced => capture.attach_one(ifindex, wall),
            _ => capture.put_first(ifindex, wall),
        };
        let mut outcome = repair(self);
        for _ in 1..TRIES {
            if outcome.is_ok() {
                break;
            }
            outcome = repair(self);
        }
        outcome
    }

    fn put_first(&mut self, ifindex: u32, wall: Wall) -> Result<()> {
        let link = wall.link(ifindex);
        // The kernel takes no program twice at one hook, and one that was taken off may still be
        // there for a moment.
        let mut instance = self.loader.open()?;
        let program = object::load(&mut instance, wall.program)?;
        if !self.has_tcx {
            self.watch.forget(&link);
            return clsact::attach_first(&mut instance, ifindex, wall);
        }
        let new = bpf::link_create(
            program.as_fd(),
            &Target::Ifindex(ifindex),
            wall.tcx,
            bpf::BPF_F_BEFORE,
        );
        let new = new.map_err(error::io("attaching", self.pins.link(&link)))?;
        self.swap_link(&link, &new)
    }

    fn cut_off(&mut self, ifindex: u32, config: WallConfig, why: &CaptureError) -> Remedy {
        let flags = config.flags | WALL_DEVICE_DOWN;
        // The note first: a device that is down without one would stay so.
        let done = self
            .put_wall(ifindex, WallConfig { flags, ..config })
            .and_then(|()| {
                device::set_up(ifindex, false)
                    .map_err(error::io("setting down", device_name(ifindex)))
            });
        match done {
            Ok(()) => Remedy::CutOff(why.to_string()),
            Err(e) => Remedy::Failed(format!("{why}; and {e}")),
        }
    }

    /// Whether a link is attached, to what it should be, and runs what it ran.
    fn look_at_link(&mut self, link: &str, attached: impl FnOnce(&LinkInfo) -> bool) -> Look {
        let Some((_, info)) = self.link(link)? else {
            return Ok(Some(Deviation::Detached));
        };
        if !attached(&info) {
            return Ok(Some(Deviation::Detached));
        }
        let same = self.watch.runs_as_before(link, info.program_id);
        Ok((!same).then_some(Deviation::Replaced))
    }

    fn link(&self, link: &str) -> Result<Option<(OwnedFd, LinkInfo)>> {
        let Some(fd) = object::open_link(&self.pins, link)? else {
            return Ok(None);
        };
        let info = bpf::link_info(fd.as_fd())
            .map_err(error::io("asking the link", self.pins.link(link)))?;
        Ok(Some((fd, info)))
    }
}

fn deviation(looked: Look) -> Option<Deviation> {
    looked.unwrap_or_else(|e| Some(Deviation::Unknown(e.to_string())))
}

fn remedy(repaired: Result<()>) -> Remedy {
    match repaired {
        Ok(()) => Remedy::Repaired,
        Err(why) => Remedy::Failed(why.to_string()),
    }
}

fn device_name(ifindex: u32) -> String {
    device::name(ifindex).unwrap_or_else(|| format!("device {ifindex}"))
}
