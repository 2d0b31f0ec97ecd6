//! The supervisor's heap.

/// Blocks from this size on, in bytes, are mappings of their own, which go back to the kernel when they
/// are freed.
const OWN_MAPPING: libc::c_int = 256 << 10;

/// Fixes that size. Left alone, the allocator raises it to the largest block that was ever freed, and
/// keeps twice as much of its heap from then on: the kernel's types, which are read once, would cost
/// some 12 MiB for good.
pub(super) fn give_large_blocks_back() {
    // SAFETY: `mallopt` takes two integers, and its own lock. That it refuses a value is told by 0 and
    // leaves the default, which takes more memory and is no fault.
    let _fixed = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING) };
}
