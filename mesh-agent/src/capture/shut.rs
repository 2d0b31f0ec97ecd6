//! Devices that no wall can stand around, because they have no end on the node: when their pod
//! is cut off they are shut from inside. The pod can't remove that, but with `CAP_NET_ADMIN` it
//! can put programs before it, and with `CAP_NET_RAW` send past it: this is no wall.

use aya::Ebpf;
use aya::programs::tc::TcAttachType;

use super::bpf::{AttachType, Target};
use super::error::{CaptureError, Result};
use super::object::{self, Updated};
use super::walls::Wall;
use super::{Capture, clsact, pins};

/// Its program, an instance per pod; its links are `shut-<slot>-<ifindex>-<way>`.
pub(super) const SHUT: &str = "shut";

/// Both directions of a device; the first word is part of the link's name.
const DIRECTIONS: [(&str, Wall); 2] = [
    (
        "in",
        Wall::new(SHUT, AttachType::TcxIngress, TcAttachType::Ingress),
    ),
    (
        "out",
        Wall::new(SHUT, AttachType::TcxEgress, TcAttachType::Egress),
    ),
];

impl Capture {
    /// Lets nothing pass a device of the caller's network namespace, which is the pod's. Does
    /// nothing where that is so already.
    ///
    /// # Errors
    /// If the device is gone or the kernel refuses.
    pub fn shut_device(&mut self, slot: u32, ifindex: u32) -> Result<()> {
        let mut instance = self.loader.open_for(slot)?;
        DIRECTIONS
            .into_iter()
            .try_for_each(|(way, wall)| self.shut_one(&mut instance, slot, ifindex, way, wall))
    }

    fn shut_one(
        &self,
        instance: &mut Ebpf,
        slot: u32,
        ifindex: u32,
        way: &str,
        wall: Wall,
    ) -> Result<()> {
        let program = object::load_once(instance, SHUT)?;
        let link = format!("{}{ifindex}-{way}", prefix(slot));
        if object::update(&self.pins, &link, program)? != Updated::Gone {
            return Ok(());
        }
        pins::remove_link(&self.pins.link(&link))?;
        let target = Target::Ifindex(ifindex);
        match object::attach(&self.pins, &link, program, &target, wall.tcx) {
            // No tcx before Linux 6.6.
            Err(CaptureError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                clsact::attach(instance, ifindex, wall)
            }
            other => other,
        }
    }

    /// Opens what [`Self::shut_device`] shut, on every device of a pod. What isn't shut is no
    /// error. On kernels without tcx it must be called in the pod's namespace, with its devices.
    ///
    /// # Errors
    /// The first thing that can't be removed; the rest is removed all the same.
    pub fn reopen_devices(&mut self, slot: u32, ifindexes: &[u32]) -> Result<()> {
        let mut results = Vec::new();
        for link in self.pins.links()? {
            if link.starts_with(&prefix(slot)) {
                results.push(pins::remove_link(&self.pins.link(&link)));
            }
        }
        for &ifindex in ifindexes {
            for (_, wall) in DIRECTIONS {
                results.push(clsact::detach(ifindex, wall));
            }
        }
        results.into_iter().collect()
    }

    /// Takes the walls off a device that is not the pod's any more; what isn't there is no error.
    ///
    /// # Errors
    /// The first thing that can't be removed; the rest is removed all the same.
    pub fn detach_wall(&mut self, ifindex: u32) -> Result<()> {
        let mut results = Vec::new();
        self.detach_walls(ifindex, &mut results);
        results.into_iter().collect()
    }
}

fn prefix(slot: u32) -> String {
    format!("{SHUT}-{slot}-")
}
