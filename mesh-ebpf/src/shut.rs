//! tc ingress and egress inside a pod that is cut off, on a device that has no end on the node:
//! nothing passes. An instance per pod, since its indexes are the pod's choice and no key.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::programs::TcContext;
use mesh_common::KernelReason;

use crate::maps::SLOT;
use crate::packet::parse;
use crate::refusal;
use crate::wall::Refused;

#[inline(always)]
pub(crate) fn shut(ctx: &TcContext) -> i32 {
    // SAFETY: a static that the loader has set; volatile, as the compiler believes its initial value.
    let slot = unsafe { core::ptr::read_volatile(&raw const SLOT) };
    let refused = match parse(ctx) {
        Ok(frame) => Refused::of(KernelReason::CutOff, &frame.packet),
        Err(_) => Refused::unparsed(KernelReason::CutOff),
    };
    refusal::record(slot, refused.reason, &refused.attempt);
    TC_ACT_SHOT as i32
}
