//! Whether the current process was put into its container from outside, as an exec does.
//!
//! What a container starts descends from the first process of its pid namespace, which has number
//! 1 there. What a runtime puts into it afterwards descends from the runtime's shim, which is in a
//! namespace further out. So the way up is followed to the node's own namespace, level 0: where a
//! process's parent is further out and the process is not number 1, it was put in. Namespaces
//! that a container makes inside of its own are on that way like any other.
//!
//! A process whose parent has ended is a child of number 1 from then on, and is no longer told.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_get_current_task;

use crate::maps::TASK;

/// Generations that are looked at. What has more between itself and its container's first process
/// counts as put in, or else a long line of shells would hide.
const MAX_GENERATIONS: u32 = 32;
/// The number of a pid namespace's first process.
const FIRST: u32 = 1;

/// Reads one number of the layout: volatile, as the compiler believes its initial value.
macro_rules! layout {
    ($field:ident) => {
        // SAFETY: a static that the loader has set.
        unsafe { core::ptr::read_volatile(&raw const TASK.$field) as u64 }
    };
}

/// Where a process is in the tree of pid namespaces: at which level, with which number there.
struct Place {
    level: u32,
    number: u32,
}

#[inline(always)]
pub(crate) fn has_entered() -> bool {
    if layout!(real_parent) == 0 {
        return false;
    }
    // SAFETY: takes nothing.
    let current = unsafe { bpf_get_current_task() };
    // What can't be read is not held against anybody: nothing here fails on a kernel whose layout
    // is known, but for a process that ends meanwhile.
    climb(current).unwrap_or(false)
}

#[inline(always)]
fn climb(current: u64) -> Option<bool> {
    let mut task: u64 = read(current + layout!(group_leader))?;
    let mut place = place(task)?;
    for _ in 0..MAX_GENERATIONS {
        // Of the first process of a namespace right below the node's own nobody has to ask.
        if place.level == 0 || (place.level == 1 && place.number == FIRST) {
            return Some(false);
        }
        let thread: u64 = read(task + layout!(real_parent))?;
        let parent: u64 = read(thread + layout!(group_leader))?;
        let around = self::place(parent)?;
        if around.level < place.level && place.number != FIRST {
            return Some(true);
        }
        task = parent;
        place = around;
    }
    Some(true)
}

#[inline(always)]
fn place(task: u64) -> Option<Place> {
    let pid: u64 = read(task + layout!(thread_pid))?;
    let level: u32 = read(pid + layout!(level))?;
    let own = layout!(numbers) + u64::from(level) * layout!(number_bytes);
    let number: u32 = read(pid + own + layout!(nr))?;
    Some(Place { level, number })
}

#[inline(always)]
fn read<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address, and fails on what is not mapped.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}
