//! The walls on kernels without tcx (before 6.6): filters on the clsact qdisc, first in order.

use std::ffi::CStr;
use std::mem;

use aya::Ebpf;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{Link, Program, ProgramError, SchedClassifier};
use aya::util::KernelVersion;

use super::error::{CaptureError, Result};
use super::walls::Wall;

/// First of all filters.
const PRIORITY: u16 = 1;
/// So that the filter is found again.
const HANDLE: TcHandle = TcHandle::new(0, 0x4e4d);

/// Puts the filter on a device, or replaces the one that is there.
pub(super) fn attach(object: &mut Ebpf, ifindex: u32, wall: Wall) -> Result<()> {
    let name = device(ifindex).ok_or_else(|| {
        let name = format!("with index {ifindex}");
        failed(wall)(ProgramError::UnknownInterface { name })
    })?;
    let program = object.program_mut(wall.program);
    let Some(Program::SchedClassifier(program)) = program else {
        return Err(CaptureError::ObjectLacks {
            what: "program",
            name: wall.program.to_owned(),
        });
    };
    // Fails where the qdisc is there already; what matters fails below.
    let _: Result<(), tc::TcError> = tc::qdisc_add_clsact(&name);
    let link = replace(program, &name, wall).or_else(|_| add(program, &name, wall));
    // The filter stays when this agent ends.
    mem::forget(link.map_err(failed(wall))?);
    Ok(())
}

fn add(
    program: &mut SchedClassifier,
    device: &str,
    wall: Wall,
) -> Result<SchedClassifierLink, ProgramError> {
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle: HANDLE,
        classid: None,
    });
    let id = program.attach_with_options(device, wall.clsact, options)?;
    program.take_link(id)
}

fn replace(
    program: &mut SchedClassifier,
    device: &str,
    wall: Wall,
) -> Result<SchedClassifierLink, ProgramError> {
    let id = program.attach_to_link(link(device, wall)?)?;
    program.take_link(id)
}

/// Whether the filter may be there: the device is, and the kernel has no tcx.
pub(super) fn stands(ifindex: u32) -> bool {
    device(ifindex).is_some()
        && KernelVersion::current().is_ok_and(|v| v < KernelVersion::new(6, 6, 0))
}

/// Removes the filter; what isn't there is no error.
pub(super) fn detach(ifindex: u32, wall: Wall) -> Result<()> {
    if !stands(ifindex) {
        return Ok(());
    }
    let Some(name) = device(ifindex) else {
        return Ok(());
    };
    match link(&name, wall).and_then(Link::detach) {
        // No filter there, or no qdisc.
        Err(ProgramError::NetlinkError(e))
            if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
        {
            Ok(())
        }
        other => other.map_err(failed(wall)),
    }
}

fn link(device: &str, wall: Wall) -> Result<SchedClassifierLink, ProgramError> {
    SchedClassifierLink::attached(device, wall.clsact, PRIORITY, HANDLE, None)
        .map_err(ProgramError::IOError)
}

/// The name of a device of the caller's network namespace.
pub(super) fn device(ifindex: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as large as the call demands.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    (!found.is_null()).then(|| name.to_string_lossy().into_owned())
}

fn failed(wall: Wall) -> impl FnOnce(ProgramError) -> CaptureError {
    move |source| CaptureError::Program {
        name: wall.program.to_owned(),
        source: Box::new(source),
    }
}
