//! Every refusal is counted exactly, and reported within the pod's budget.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use mesh_common::{
    EVENT_AUDITED, EVENTS_PER_POD_PER_SECOND, EventBudget, KernelReason, REASON_SLOTS, RefusalEvent,
};

use crate::address::Address;
use crate::maps::{AUDITED, EVENT_BUDGETS, EVENTS, REFUSALS};

const SECOND_NS: u64 = 1_000_000_000;

/// Who wanted what.
pub(crate) struct Attempt {
    pub(crate) source: Address,
    pub(crate) source_port: u16,
    pub(crate) destination: Address,
    pub(crate) destination_port: u16,
    pub(crate) protocol: u32,
}

impl Attempt {
    /// An attempt whose source has no address yet.
    #[inline(always)]
    pub(crate) fn to(destination: Address, destination_port: u16, protocol: u32) -> Self {
        Self {
            source: Address::UNSPECIFIED,
            source_port: 0,
            destination,
            destination_port,
            protocol,
        }
    }
}

/// Counts and reports one refusal.
#[inline(always)]
pub(crate) fn record(slot: u32, reason: KernelReason, attempt: &Attempt) {
    let reason = reason as u32;
    count(slot, reason);
    report(slot, reason, attempt, 0);
}

/// Counts and reports what policy refuses and audit lets through.
#[inline(always)]
pub(crate) fn record_audited(slot: u32, reason: KernelReason, attempt: &Attempt) {
    let reason = reason as u32;
    count_audited(slot, reason);
    report(slot, reason, attempt, EVENT_AUDITED);
}

/// Counts one that is refused.
#[inline(always)]
pub(crate) fn count(slot: u32, reason: u32) {
    if let Some(counter) = REFUSALS.get_ptr_mut(slot * REASON_SLOTS + reason) {
        // SAFETY: an aligned u64 of the map.
        unsafe { increment(counter) };
    }
}

/// Counts one that is let through.
#[inline(always)]
pub(crate) fn count_audited(slot: u32, reason: u32) {
    if let Some(counter) = AUDITED.get_ptr_mut(slot * REASON_SLOTS + reason) {
        // SAFETY: an aligned u64 of the map.
        unsafe { increment(counter) };
    }
}

/// Adds one atomically. `core` has no read-modify-write for this target.
///
/// # Safety
/// `counter` must point to an aligned u64 that only atomic operations access.
#[inline(always)]
pub(crate) unsafe fn increment(counter: *mut u64) {
    // SAFETY: as the caller promises.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {one}",
            counter = in(reg) counter,
            one = in(reg) 1_u64,
            options(nostack),
        );
    }
}

/// The pod's budget, if there is an event left in it. It is not exact when processors race for it;
/// the counters are.
#[inline(always)]
pub(crate) fn take_budget(slot: u32, time_ns: u64) -> Option<&'static mut EventBudget> {
    let budget = EVENT_BUDGETS.get_ptr_mut(slot)?;
    // SAFETY: an element of the array; racing writers only blur the budget.
    let budget = unsafe { &mut *budget };
    if time_ns.wrapping_sub(budget.window_start_ns) > SECOND_NS {
        budget.window_start_ns = time_ns;
        budget.sent = 0;
    }
    if budget.sent >= EVENTS_PER_POD_PER_SECOND {
        budget.suppressed += 1;
        return None;
    }
    budget.sent += 1;
    Some(budget)
}

/// What became of an event that the budget had room for.
#[inline(always)]
pub(crate) fn settle_budget(budget: &mut EventBudget, is_out: bool) {
    budget.suppressed = if is_out { 0 } else { budget.suppressed + 1 };
}

#[inline(always)]
fn report(slot: u32, reason: u32, attempt: &Attempt, flags: u8) {
    // SAFETY: takes nothing.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let Some(budget) = take_budget(slot, time_ns) else {
        return;
    };
    let suppressed = if budget.suppressed > 0xffff {
        u16::MAX
    } else {
        budget.suppressed as u16
    };
    let event = RefusalEvent {
        time_ns,
        reason,
        slot,
        source: attempt.source.bytes(),
        destination: attempt.destination.bytes(),
        source_port: attempt.source_port,
        destination_port: attempt.destination_port,
        protocol: attempt.protocol as u8,
        flags,
        suppressed,
    };
    settle_budget(budget, EVENTS.output(&event, 0).is_ok());
}
