//! The walls on kernels without tcx (before 6.6): filters on the clsact qdisc, first in order.
//!
//! The lowest priority runs first; within one, the filter that was added last. So a wall has
//! priority 1, and is added again, under its other handle, where another got before it.

use std::mem;

use aya::Ebpf;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{Link, Program, ProgramError, SchedClassifier};

use super::device;
use super::error::{self, CaptureError, Result};
use super::filters::{self, Filter};
use super::walls::Wall;

/// First of all filters.
const PRIORITY: u16 = 1;
/// So that a wall's filter is found again; the second is for the moment in which it is replaced.
const HANDLES: [TcHandle; 2] = [TcHandle::new(0, 0x4e4d), TcHandle::new(0, 0x4e4e)];

/// Puts the filter on a device, or replaces the program of the one that is there.
pub(super) fn attach(object: &mut Ebpf, ifindex: u32, wall: Wall) -> Result<()> {
    let name = existing(ifindex, wall)?;
    // Fails where the qdisc is there already; what matters fails below.
    let _: Result<(), tc::TcError> = tc::qdisc_add_clsact(&name);
    let program = classifier(object, wall)?;
    let filters = list(ifindex, wall)?;
    let link = match filters.iter().find(|filter| is_ours(filter, wall)) {
        Some(filter) => link(&name, wall, filter.handle.into())
            .and_then(|link| program.attach_to_link(link))
            .and_then(|id| program.take_link(id)),
        None => add(program, &name, wall, free_handle(&filters)),
    };
    // The filter stays when this agent ends.
    mem::forget(link.map_err(failed(wall))?);
    Ok(())
}

/// Puts a filter before all others, and takes away those of ours that there were.
pub(super) fn attach_first(object: &mut Ebpf, ifindex: u32, wall: Wall) -> Result<()> {
    let name = existing(ifindex, wall)?;
    let _: Result<(), tc::TcError> = tc::qdisc_add_clsact(&name);
    let filters = list(ifindex, wall)?;
    let program = classifier(object, wall)?;
    mem::forget(add(program, &name, wall, free_handle(&filters)).map_err(failed(wall))?);
    let before = filters.iter().filter(|filter| is_ours(filter, wall));
    before
        .into_iter()
        .try_for_each(|filter| remove(&name, wall, filter))
}

/// Where in the order the wall's filter is, if there is one, and the program that it runs.
pub(super) fn position(ifindex: u32, wall: Wall) -> Result<Option<(usize, u32)>> {
    let all = list(ifindex, wall)?;
    let found = all.iter().enumerate().find(|(_, f)| is_ours(f, wall));
    Ok(found.map(|(at, filter)| (at, filter.program_id.unwrap_or_default())))
}

/// Removes the filter; what isn't there is no error.
pub(super) fn detach(ifindex: u32, wall: Wall) -> Result<()> {
    let Some(name) = device::name(ifindex) else {
        return Ok(());
    };
    list(ifindex, wall)?
        .iter()
        .filter(|filter| is_ours(filter, wall))
        .try_for_each(|filter| remove(&name, wall, filter))
}

fn list(ifindex: u32, wall: Wall) -> Result<Vec<Filter>> {
    filters::list(ifindex, wall.clsact).map_err(error::io(
        "listing the tc filters of",
        device::name(ifindex).unwrap_or_else(|| format!("device {ifindex}")),
    ))
}

fn is_ours(filter: &Filter, wall: Wall) -> bool {
    filter.priority == PRIORITY
        && HANDLES.iter().any(|h| u32::from(*h) == filter.handle)
        && filter.name == wall.program
}

/// One that no filter has, not even a foreign one; where there is none the kernel refuses the first.
fn free_handle(filters: &[Filter]) -> TcHandle {
    let taken = |handle: &TcHandle| filters.iter().any(|f| f.handle == u32::from(*handle));
    let free = HANDLES.into_iter().find(|handle| !taken(handle));
    free.unwrap_or(HANDLES[0])
}

fn classifier(object: &mut Ebpf, wall: Wall) -> Result<&mut SchedClassifier> {
    match object.program_mut(wall.program) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(CaptureError::ObjectLacks {
            what: "program",
            name: wall.program.to_owned(),
        }),
    }
}

fn add(
    program: &mut SchedClassifier,
    device: &str,
    wall: Wall,
    handle: TcHandle,
) -> Result<SchedClassifierLink, ProgramError> {
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: PRIORITY,
        handle,
        classid: None,
    });
    let id = program.attach_with_options(device, wall.clsact, options)?;
    program.take_link(id)
}

fn remove(device: &str, wall: Wall, filter: &Filter) -> Result<()> {
    link(device, wall, filter.handle.into())
        .and_then(Link::detach)
        .map_err(failed(wall))
}

fn link(device: &str, wall: Wall, handle: TcHandle) -> Result<SchedClassifierLink, ProgramError> {
    SchedClassifierLink::attached(device, wall.clsact, PRIORITY, handle, None)
        .map_err(ProgramError::IOError)
}

fn existing(ifindex: u32, wall: Wall) -> Result<String> {
    device::name(ifindex).ok_or_else(|| {
        let name = format!("with index {ifindex}");
        failed(wall)(ProgramError::UnknownInterface { name })
    })
}

fn failed(wall: Wall) -> impl FnOnce(ProgramError) -> CaptureError {
    move |source| CaptureError::Program {
        name: wall.program.to_owned(),
        source: Box::new(source),
    }
}
