//! Connections that are older than their pod's enrolment, as the wall knows them.

use aya::maps::MapError;
use mesh_common::{GRANDFATHERED_PER_POD, Grandfathered, map_name};

use super::Capture;
use super::abi::{self, Abi, PodGrandfathered};
use super::error::Result;
use super::pods::{BPF_F_NO_PREALLOC, absent, check};

impl Capture {
    /// Lets these connections of a pod go on, by the cookies of their sockets, beside those that
    /// may already.
    ///
    /// # Errors
    /// If a map can't be made or written, or the pod has more than its quota. What was written
    /// before that stays.
    pub fn grandfather(&mut self, slot: u32, sockets: &[(u64, Grandfathered)]) -> Result<()> {
        check(slot)?;
        if sockets.is_empty() {
            return Ok(());
        }
        let failed = || abi::failed(map_name::GRANDFATHERED);
        let mut of_pod = match self.maps.grandfathered.get(&slot, 0) {
            Ok(of_pod) => of_pod,
            Err(MapError::KeyNotFound) => {
                let mut new = PodGrandfathered::create(GRANDFATHERED_PER_POD, BPF_F_NO_PREALLOC)
                    .map_err(failed())?;
                // Complete before the wall sees it: putting it in waits for running programs.
                write(&mut new, sockets)?;
                let put = self.maps.grandfathered.set(slot, &new, 0);
                return put.map_err(failed());
            }
            Err(e) => return Err(failed()(e)),
        };
        write(&mut of_pod, sockets)
    }

    /// Connections of a pod that may go on, by the cookies of their sockets.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn grandfathered(&self, slot: u32) -> Result<Vec<(u64, Grandfathered)>> {
        check(slot)?;
        let of_pod = match self.maps.grandfathered.get(&slot, 0) {
            Ok(of_pod) => of_pod,
            Err(MapError::KeyNotFound) => return Ok(Vec::new()),
            Err(e) => return Err(abi::failed(map_name::GRANDFATHERED)(e)),
        };
        let entries = of_pod.iter();
        let entries = entries.map(|entry| entry.map(|(cookie, Abi(older))| (cookie, older)));
        entries
            .collect::<Result<_, _>>()
            .map_err(abi::failed(map_name::GRANDFATHERED))
    }

    /// Nothing of these sockets passes the wall any more.
    ///
    /// # Errors
    /// If the map can't be changed.
    pub fn forget_grandfathered(&mut self, slot: u32, cookies: &[u64]) -> Result<()> {
        check(slot)?;
        let mut of_pod = match self.maps.grandfathered.get(&slot, 0) {
            Ok(of_pod) => of_pod,
            Err(MapError::KeyNotFound) => return Ok(()),
            Err(e) => return Err(abi::failed(map_name::GRANDFATHERED)(e)),
        };
        for cookie in cookies {
            absent(of_pod.remove(cookie)).map_err(abi::failed(map_name::GRANDFATHERED))?;
        }
        Ok(())
    }

    /// No connection of a pod is older than its enrolment any more.
    ///
    /// # Errors
    /// If the map can't be changed.
    pub fn end_grandfathering(&mut self, slot: u32) -> Result<()> {
        check(slot)?;
        match self.maps.grandfathered.get(&slot, 0) {
            // Taking out waits for running programs.
            Err(MapError::KeyNotFound) => Ok(()),
            _ => self.remove_inner(map_name::GRANDFATHERED, slot),
        }
    }
}

/// The clock that [`Grandfathered::until_ns`] is told by, in nanoseconds.
#[must_use]
pub fn kernel_clock_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` outlives the call. Every kernel has this clock, so it can't fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn write(of_pod: &mut PodGrandfathered, sockets: &[(u64, Grandfathered)]) -> Result<()> {
    for (cookie, older) in sockets {
        let inserted = of_pod.insert(cookie, Abi(*older), 0);
        inserted.map_err(abi::failed(map_name::GRANDFATHERED))?;
    }
    Ok(())
}
