//! What the programs know of each pod's own processes.

use mesh_common::{OwnProcesses, map_name};

use super::Capture;
use super::abi::{self, Abi};
use super::error::Result;
use super::pods::check;

impl Capture {
    /// Says how a pod's own processes are told from others.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn set_processes(&mut self, slot: u32, own: OwnProcesses) -> Result<()> {
        check(slot)?;
        self.maps
            .processes
            .set(slot, Abi(own), 0)
            .map_err(abi::failed(map_name::PROCESSES))
    }

    /// Tells none of a slot's processes from others any more.
    pub(super) fn forget_processes(&mut self, slot: u32) -> Result<()> {
        let unknown = OwnProcesses {
            cgroup_id: 0,
            cgroup_level: 0,
            flags: 0,
        };
        self.set_processes(slot, unknown)
    }
}
