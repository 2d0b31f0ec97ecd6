//! How long a process of the agent runs at a stretch beside others.

use std::io;
use std::mem::MaybeUninit;

/// Nanoseconds at a stretch: the least that the scheduler takes. Its default is some
/// milliseconds, for which a worker that wakes may have to wait for one that works.
const SLICE_NS: u64 = 100_000;

/// Asks for short slices, for this process and for those that it will start. That is no more
/// of the processor, only sooner and in smaller pieces. Policy and nice value stay; kernels
/// before 6.12 take no notice.
///
/// # Errors
/// If the kernel, or a filter of system calls, refuses.
pub(crate) fn ask() -> io::Result<()> {
    let mut attributes = MaybeUninit::<libc::sched_attr>::zeroed();
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most `size` bytes to `attributes`, which has as many.
    let got =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0) };
    check(got)?;
    // SAFETY: all bytes are initialised, and any are valid numbers.
    let mut attributes = unsafe { attributes.assume_init() };
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the kernel reads as many bytes as it has just said that there are.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
