//! The embedded object, its programs, and the links they run in.

use std::os::fd::{AsFd, OwnedFd};

use aya::programs::{Program, ProgramFd};
use aya::{Ebpf, EbpfLoader};
use mesh_common::{MAX_PODS, map_name};

use super::bpf::{self, AttachType, Target};
use super::error::{self, CaptureError, Result};
use super::features;
use super::pins::Pins;
use super::task;

/// Built by `cargo xtask ebpf`, embedded by the build script; empty when it wasn't built.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));

pub(super) const MAPS: [&str; 18] = [
    map_name::CONFIG,
    map_name::PODS,
    map_name::FLOWS,
    map_name::PENDING,
    map_name::GRANDFATHERED,
    map_name::LISTENERS,
    map_name::SOCKETS,
    map_name::WALLS,
    map_name::REFUSALS,
    map_name::AUDITED,
    map_name::POLICIES,
    map_name::PROBE_PORTS,
    map_name::PROBES,
    map_name::PROBED,
    map_name::EVENTS,
    map_name::EVENT_BUDGETS,
    map_name::PROCESSES,
    map_name::FOREIGN,
];

/// Where a program is attached for all pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The root of the hierarchy: every process of the node.
    Root,
    /// The mesh's subtree: workers.
    Mesh,
}

/// Programs that are attached once, by the name they and their links have.
pub(super) const ATTACHED_ONCE: [(&str, Place, AttachType); 14] = [
    ("connect4", Place::Root, AttachType::Inet4Connect),
    ("connect6", Place::Root, AttachType::Inet6Connect),
    ("bind4", Place::Root, AttachType::Inet4Bind),
    ("bind6", Place::Root, AttachType::Inet6Bind),
    ("sendmsg4", Place::Root, AttachType::Udp4Sendmsg),
    ("sendmsg6", Place::Root, AttachType::Udp6Sendmsg),
    ("getpeername4", Place::Root, AttachType::Inet4Getpeername),
    ("getpeername6", Place::Root, AttachType::Inet6Getpeername),
    ("getsockname4", Place::Root, AttachType::Inet4Getsockname),
    ("getsockname6", Place::Root, AttachType::Inet6Getsockname),
    ("sock_release", Place::Root, AttachType::InetSockRelease),
    ("tcp_events", Place::Root, AttachType::SockOps),
    ("getsockopt", Place::Mesh, AttachType::Getsockopt),
    ("setsockopt", Place::Mesh, AttachType::Setsockopt),
];
/// The steering program, an instance per pod; its links are `steer-<slot>`.
pub(super) const STEER: &str = "steer";
/// Global that tells an instance of [`STEER`] its pod.
const SLOT: &str = "SLOT";

/// Global that says whether the kernel has MPTCP.
const MPTCP: &str = "MPTCP";
/// Global that says where the kernel has a process's descent.
const TASK: &str = "TASK";
static PRESENT: u32 = 1;
static ABSENT: u32 = 0;

/// Values of [`SLOT`], for the loader to point to.
static SLOTS: [u32; MAX_PODS as usize] = {
    let mut slots = [0; MAX_PODS as usize];
    let mut slot = 0;
    while slot < MAX_PODS {
        slots[slot as usize] = slot;
        slot += 1;
    }
    slots
};
static NO_SLOT: u32 = u32::MAX;

/// Opens the object time and again. Kept, since making one reads the kernel's whole BTF first.
pub(super) struct Loader {
    loader: EbpfLoader<'static>,
}

impl Loader {
    pub(super) fn new(pins: &Pins) -> Result<Self> {
        let mut loader = Self::without_pins()?;
        loader.use_pins(pins);
        Ok(loader)
    }

    /// Objects have maps of their own, which go with them.
    pub(super) fn without_pins() -> Result<Self> {
        if OBJECT.is_empty() {
            return Err(CaptureError::NoObject);
        }
        let mut loader = EbpfLoader::new();
        // 11 MiB for as long as the agent runs, and our programs refer to none of the kernel's types.
        loader.btf(None);
        let mptcp = if features::mptcp() { &PRESENT } else { &ABSENT };
        loader.override_global(MPTCP, mptcp, true);
        loader.override_global(TASK, task::layout(), true);
        Ok(Self { loader })
    }

    /// Objects use the maps that are pinned there, and make and pin those that aren't.
    pub(super) fn use_pins(&mut self, pins: &Pins) {
        for map in MAPS {
            self.loader.map_pin_path(map, pins.map(map));
        }
    }

    /// An object that serves no single pod. Loads no program yet.
    pub(super) fn open(&mut self) -> Result<Ebpf> {
        self.open_with(&NO_SLOT)
    }

    /// An object for a pod's instance of [`STEER`]. Loads no program yet.
    pub(super) fn open_for(&mut self, slot: u32) -> Result<Ebpf> {
        let value = SLOTS.get(slot as usize).ok_or(CaptureError::Slot {
            slot,
            max: MAX_PODS,
        })?;
        self.open_with(value)
    }

    fn open_with(&mut self, slot: &'static u32) -> Result<Ebpf> {
        self.loader.override_global(SLOT, slot, true);
        self.loader
            .load(OBJECT)
            .map_err(|e| CaptureError::Load(Box::new(e)))
    }
}

/// Loads a program that may be loaded already.
pub(super) fn load_once<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a ProgramFd> {
    if object.program(name).is_some_and(|p| p.fd().is_ok()) {
        return loaded(object, name);
    }
    load(object, name)
}

fn loaded<'a>(object: &'a Ebpf, name: &str) -> Result<&'a ProgramFd> {
    object
        .program(name)
        .and_then(|p| p.fd().ok())
        .ok_or_else(|| CaptureError::ObjectLacks {
            what: "program",
            name: name.to_owned(),
        })
}

/// Loads one program into the kernel.
pub(super) fn load<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a ProgramFd> {
    let program = object
        .program_mut(name)
        .ok_or_else(|| CaptureError::ObjectLacks {
            what: "program",
            name: name.to_owned(),
        })?;
    let failed = |source| CaptureError::Program {
        name: name.to_owned(),
        source: Box::new(source),
    };
    match &mut *program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::CgroupSockopt(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        _ => {
            return Err(CaptureError::ObjectLacks {
                what: "program of the expected type",
                name: name.to_owned(),
            });
        }
    }
    .map_err(failed)?;
    program.fd().map_err(failed)
}

/// Attaches a program and pins its link.
pub(super) fn attach(
    pins: &Pins,
    link: &str,
    program: &ProgramFd,
    target: &Target<'_>,
    attach_type: AttachType,
) -> Result<()> {
    let flags = match attach_type {
        AttachType::TcxIngress | AttachType::TcxEgress => bpf::BPF_F_BEFORE,
        _ => 0,
    };
    let path = pins.link(link);
    let fd = bpf::link_create(program.as_fd(), target, attach_type, flags)
        .map_err(error::io("attaching", &path))?;
    bpf::pin(fd.as_fd(), &path).map_err(error::io("pinning the link", &path))
}

/// What became of a link that should run a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Updated {
    /// It runs this program already.
    Same,
    /// It runs the new program now.
    Replaced,
    /// There is none, or what it hung on is gone.
    Gone,
}

/// Makes a pinned link run this program, in one step: never two, never none.
pub(super) fn update(pins: &Pins, link: &str, program: &ProgramFd) -> Result<Updated> {
    let path = pins.link(link);
    let Some(fd) = open_link(pins, link)? else {
        return Ok(Updated::Gone);
    };
    // The same code is not enough: it can work on another version's maps.
    let info = bpf::link_info(fd.as_fd()).map_err(error::io("asking the link", &path))?;
    if info.target == 0 {
        // Somebody has detached it, or what it hung on is gone.
        return Ok(Updated::Gone);
    }
    let ours = bpf::program_id(program.as_fd()).map_err(error::io("asking the program", &path))?;
    if info.program_id == ours {
        return Ok(Updated::Same);
    }
    match bpf::link_update(fd.as_fd(), program.as_fd()) {
        Ok(()) => Ok(Updated::Replaced),
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(Updated::Gone),
        Err(e) => Err(error::io("replacing the program of the link", path)(e)),
    }
}

/// Opens a pinned link; `None` if there is none.
pub(super) fn open_link(pins: &Pins, link: &str) -> Result<Option<OwnedFd>> {
    let path = pins.link(link);
    match bpf::open(&path) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(error::io("opening the link", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use aya_obj::Object;
    use aya_obj::btf::Btf;

    use super::OBJECT;

    #[test]
    fn the_programs_refer_to_no_type_of_the_kernel() {
        let mut object = Object::parse(OBJECT).unwrap();
        // Where there is no type, a reference to one can only fail.
        object.relocate_btf(&Btf::new()).unwrap();
    }
}
