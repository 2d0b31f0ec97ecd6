//! The maps that each pod has its own of, and the arrays of maps that hold them by slot.
//!
//! The loader could make the arrays, but it gives the template of their inner maps a BTF type.
//! Linux 6.1 then takes only inner maps that have one too (before 6.2 the template's absent timer
//! counts as another absent timer without BTF), and those that the agent makes have none.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::lpm_trie::Key;
use mesh_common::{
    FLOWS_PER_POD, Flow, FlowKey, GRANDFATHERED_PER_POD, Grandfathered, MAX_PODS,
    POLICY_ENTRIES_PER_POD, PolicyEntry, PolicyKey, map_name,
};

use super::abi::Abi;
use super::bpf;
use super::error::{self, Result};
use super::pins::Pins;

/// Makes and pins the arrays of maps, for the loader to find.
pub(super) fn create_arrays(pins: &Pins) -> Result<()> {
    let flows = bpf::create_hash::<Abi<FlowKey>, Abi<Flow>>(FLOWS_PER_POD);
    create_array(pins, map_name::FLOWS, flows)?;
    let pending = bpf::create_hash::<u64, u64>(FLOWS_PER_POD);
    create_array(pins, map_name::PENDING, pending)?;
    let older = bpf::create_hash::<u64, Abi<Grandfathered>>(GRANDFATHERED_PER_POD);
    create_array(pins, map_name::GRANDFATHERED, older)?;
    let policy = create_policy(POLICY_ENTRIES_PER_POD);
    create_array(pins, map_name::POLICIES, policy)
}

fn create_array(pins: &Pins, name: &str, template: io::Result<OwnedFd>) -> Result<()> {
    let path = pins.map(name);
    template
        .and_then(|template| bpf::create_array_of_maps(name, MAX_PODS, template.as_fd()))
        .and_then(|array| bpf::pin(array.as_fd(), &path))
        .map_err(error::io("making the array of maps", path))
}

/// A trie for one pod's policy with room for that many entries.
pub(super) fn create_policy(entries: u32) -> io::Result<OwnedFd> {
    bpf::create_trie::<Key<Abi<PolicyKey>>, Abi<PolicyEntry>>(entries)
}
