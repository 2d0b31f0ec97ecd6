//! The worker's heap: kept while data moves, given back when it rests.
//!
//! Data moves through buffers that live for microseconds. The allocator gives the top of its heap
//! back to the kernel whenever 128 KiB of it are free, so each of those buffers was made of pages
//! that the kernel had to find and clear again: a tenth of a bulk stream's processor time.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Free bytes at the top of the heap that are kept until the worker rests.
const KEPT: libc::c_int = 4 << 20;
/// Buffers from this size on, in bytes, are mappings of their own and never kept.
const OWN_MAPPING: libc::c_int = 1 << 20;
/// For how long nothing moves before the heap is given back.
const REST: Duration = Duration::from_secs(1);

thread_local! {
    // The start has used it.
    static HEAP: Heap = const { Heap { used: Cell::new(true), resting: RefCell::new(None) } };
}

struct Heap {
    used: Cell<bool>,
    /// Who waits for it to be used.
    resting: RefCell<Option<Waker>>,
}

/// Makes the allocator keep what is freed.
pub(super) fn keep() {
    for (parameter, value) in [
        (libc::M_TRIM_THRESHOLD, KEPT),
        (libc::M_MMAP_THRESHOLD, OWN_MAPPING),
    ] {
        // SAFETY: `mallopt` takes two integers, and its own lock. That it refuses a value is told
        // by 0 and leaves the default, which is slower and no fault.
        let _kept = unsafe { libc::mallopt(parameter, value) };
    }
}

/// To be called where data moves.
pub(crate) fn used() {
    HEAP.with(|heap| {
        if !heap.used.replace(true)
            && let Some(waker) = heap.resting.take()
        {
            waker.wake();
        }
    });
}

/// Gives the heap back each time that the worker comes to rest. Wakes nobody who rests.
pub(super) async fn give_back_at_rest() {
    loop {
        poll_fn(|cx| {
            HEAP.with(|heap| {
                if heap.used.get() {
                    return Poll::Ready(());
                }
                heap.resting.replace(Some(cx.waker().clone()));
                Poll::Pending
            })
        })
        .await;
        while HEAP.with(|heap| heap.used.replace(false)) {
            tokio::time::sleep(REST).await;
        }
        give_back();
    }
}

/// Gives whole free pages back to the kernel.
pub(super) fn give_back() {
    // SAFETY: `malloc_trim` takes an integer, and its own locks.
    let _given_back = unsafe { libc::malloc_trim(0) };
}
