//! What the programs have counted of each pod.

use aya::maps::{Array, MapData};
use mesh_common::{EventBudget, KernelReason, REASON_SLOTS, map_name};

use super::Capture;
use super::abi::{self, Abi};
use super::error::Result;
use super::pods::check;

impl Capture {
    /// Exact counts of a pod's refusals, those above zero.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn refusals(&self, slot: u32) -> Result<Vec<(KernelReason, u64)>> {
        counts(&self.maps.refusals, map_name::REFUSALS, slot)
    }

    /// Exact counts of what a pod's policy refuses and audit let through, those above zero.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn audited(&self, slot: u32) -> Result<Vec<(KernelReason, u64)>> {
        counts(&self.maps.audited, map_name::AUDITED, slot)
    }

    pub(super) fn zero_counters(&mut self, slot: u32) -> Result<()> {
        for reason in 0..REASON_SLOTS {
            let index = slot * REASON_SLOTS + reason;
            let refusals = self.maps.refusals.set(index, 0, 0);
            refusals.map_err(abi::failed(map_name::REFUSALS))?;
            let audited = self.maps.audited.set(index, 0, 0);
            audited.map_err(abi::failed(map_name::AUDITED))?;
        }
        let probed = self.maps.probed.set(slot, 0, 0);
        probed.map_err(abi::failed(map_name::PROBED))?;
        let budget = EventBudget {
            window_start_ns: 0,
            sent: 0,
            suppressed: 0,
        };
        self.maps
            .event_budgets
            .set(slot, Abi(budget), 0)
            .map_err(abi::failed(map_name::EVENT_BUDGETS))
    }
}

fn counts(
    counters: &Array<MapData, u64>,
    name: &str,
    slot: u32,
) -> Result<Vec<(KernelReason, u64)>> {
    check(slot)?;
    let mut counts = Vec::new();
    for reason in KernelReason::ALL {
        let index = slot * REASON_SLOTS + reason as u32;
        let count = counters.get(&index, 0).map_err(abi::failed(name))?;
        if count > 0 {
            counts.push((reason, count));
        }
    }
    Ok(counts)
}
