//! What one pod has in the kernel: maps, steering, enrolment.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::{io, panic, thread};

use aya::maps::{ArrayOfMaps, MapData, MapError};
use aya::programs::ProgramFd;
use mesh_common::{
    FLOWS_PER_POD, LISTENER_PLAINTEXT_V4, LISTENER_PLAINTEXT_V6, LISTENERS_PER_POD, MAX_PODS,
    PodConfig, map_name,
};

use super::abi::{self, Abi, Maps, PodFlows, PodPending};
use super::bpf::{self, AttachType, Target};
use super::error::{self, CaptureError, Result};
use super::object;
use super::shut::SHUT;
use super::{Capture, pins};

pub(super) const BPF_F_NO_PREALLOC: u32 = 1;

impl Capture {
    /// Gives a slot fresh maps, zeroed counters, no policy and no ports for probes. First step of an enrolment.
    ///
    /// # Errors
    /// If a map can't be made or changed.
    pub fn prepare_pod(&mut self, slot: u32) -> Result<()> {
        check(slot)?;
        self.maps.give_rendezvous(slot)?;
        self.clear_policy(slot)?;
        self.end_grandfathering(slot)?;
        self.set_probe_ports(slot, &[], &BTreeSet::new())?;
        self.forget_processes(slot)?;
        self.zero_counters(slot)
    }

    /// Hands the plaintext listeners to `sk_lookup`; replaces those of an earlier worker.
    ///
    /// # Errors
    /// If a descriptor is no listening TCP socket.
    pub fn set_listeners(
        &mut self,
        slot: u32,
        v4: BorrowedFd<'_>,
        v6: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        check(slot)?;
        let listeners = &mut self.maps.listeners;
        let first = slot * LISTENERS_PER_POD;
        listeners
            .set(first + LISTENER_PLAINTEXT_V4, &v4, 0)
            .map_err(abi::failed(map_name::LISTENERS))?;
        match v6 {
            Some(v6) => listeners.set(first + LISTENER_PLAINTEXT_V6, &v6, 0),
            None => absent(listeners.clear_index(&(first + LISTENER_PLAINTEXT_V6))),
        }
        .map_err(abi::failed(map_name::LISTENERS))
    }

    /// Attaches this pod's `sk_lookup` to its network namespace: from now on inbound TCP goes
    /// to the worker's listener or nowhere. Does nothing if it is attached there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn steer(&mut self, slot: u32, netns: BorrowedFd<'_>) -> Result<()> {
        check(slot)?;
        let link = steer_link(slot);
        self.watch.steered(slot, netns)?;
        if let Some(fd) = object::open_link(&self.pins, &link)? {
            let path = self.pins.link(&link);
            let info = bpf::link_info(fd.as_fd()).map_err(error::io("asking the link", &path))?;
            if u64::from(info.target) == inode(netns)? {
                return Ok(());
            }
            pins::remove_link(&path)?;
        }
        let mut instance = self.loader.open_for(slot)?;
        let program = object::load(&mut instance, object::STEER)?;
        let target = Target::Fd(netns);
        self.watch.forget(&link);
        object::attach(&self.pins, &link, program, &target, AttachType::SkLookup)
    }

    /// Enrols the pod: from now on its connections are captured. Last step; one insert.
    /// Replaces what was said of the pod before.
    ///
    /// # Errors
    /// If the insert fails.
    pub fn enrol(&mut self, netns_cookie: u64, pod: PodConfig) -> Result<()> {
        check(pod.slot)?;
        self.maps
            .pods
            .insert(netns_cookie, Abi(pod), 0)
            .map_err(abi::failed(map_name::PODS))
    }

    /// Takes a pod out: enrolment, steering, walls, listeners, policy, ports for probes, maps. What
    /// isn't there is no error. Call it in the network namespace that the walls are in.
    ///
    /// # Errors
    /// The first thing that can't be removed; the rest is removed all the same.
    pub fn withdraw(&mut self, netns_cookie: u64, slot: u32, ifindexes: &[u32]) -> Result<()> {
        check(slot)?;
        let mut results = vec![
            absent(self.maps.pods.remove(&netns_cookie)).map_err(abi::failed(map_name::PODS)),
            pins::remove_link(&self.pins.link(&steer_link(slot))),
        ];
        self.watch.withdrawn(slot);
        for &ifindex in ifindexes {
            self.detach_walls(ifindex, &mut results);
        }
        for kind in [LISTENER_PLAINTEXT_V4, LISTENER_PLAINTEXT_V6] {
            let index = slot * LISTENERS_PER_POD + kind;
            results.push(
                absent(self.maps.listeners.clear_index(&index))
                    .map_err(abi::failed(map_name::LISTENERS)),
            );
        }
        for name in [
            map_name::FLOWS,
            map_name::PENDING,
            map_name::GRANDFATHERED,
            map_name::POLICIES,
        ] {
            results.push(self.remove_inner(name, slot));
        }
        results.push(self.set_probe_ports(slot, &[], &BTreeSet::new()));
        results.push(self.forget_processes(slot));
        results.push(self.zero_counters(slot));
        results.into_iter().collect()
    }

    /// Who is enrolled, by netns cookie: for re-adoption.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn enrolled(&self) -> Result<Vec<(u64, PodConfig)>> {
        self.maps
            .pods
            .iter()
            .map(|entry| entry.map(|(cookie, Abi(pod))| (cookie, pod)))
            .collect::<Result<_, _>>()
            .map_err(abi::failed(map_name::PODS))
    }

    /// Entries that a pod has in `FLOWS` and in `PENDING`: connections between `connect()` and
    /// the accept side's establishment.
    ///
    /// # Errors
    /// If the slot has no maps, or they can't be read.
    pub fn unfinished(&self, slot: u32) -> Result<(usize, usize)> {
        check(slot)?;
        let flows = self.maps.flows.get(&slot, 0);
        let pending = self.maps.pending.get(&slot, 0);
        let flows = flows.map_err(abi::failed(map_name::FLOWS))?;
        let pending = pending.map_err(abi::failed(map_name::PENDING))?;
        Ok((flows.keys().count(), pending.keys().count()))
    }

    /// Loads a program for each pinned link that serves one pod: each has its own instance, with
    /// its slot in it.
    pub(super) fn load_instances(&mut self) -> Result<Vec<(String, ProgramFd)>> {
        let mut programs = Vec::new();
        for link in self.pins.links()? {
            let Some((program, slot)) = instance(&link) else {
                continue;
            };
            let mut instance = self.loader.open_for(slot)?;
            let program = object::load(&mut instance, program)?.try_clone();
            let program = program.map_err(error::io("keeping the program for", &link))?;
            programs.push((link, program));
        }
        Ok(programs)
    }

    pub(super) fn remove_inner(&self, name: &'static str, slot: u32) -> Result<()> {
        let outer = abi::data(&self.pins, name).map_err(abi::failed(name))?;
        match bpf::delete(outer.fd().as_fd(), slot) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => {
                Err(error::io("emptying the slot in", self.pins.map(name))(e))
            }
            _ => Ok(()),
        }
    }
}

impl Maps {
    /// Gives a slot an empty rendezvous and its quota. Each change waits until the programs that
    /// run have ended, some 10 ms, so both wait at once.
    fn give_rendezvous(&mut self, slot: u32) -> Result<()> {
        let (flows, pending) = (&mut self.flows, &mut self.pending);
        thread::scope(|scope| {
            let quota = scope.spawn(|| give_pending(pending, slot));
            let rendezvous = give_flows(flows, slot);
            let quota = quota.join().unwrap_or_else(|e| panic::resume_unwind(e));
            rendezvous.and(quota)
        })
    }
}

/// Gives a slot an empty rendezvous.
pub(super) fn give_flows(flows: &mut ArrayOfMaps<MapData, PodFlows>, slot: u32) -> Result<()> {
    let map = PodFlows::create(FLOWS_PER_POD, BPF_F_NO_PREALLOC);
    map.and_then(|map| flows.set(slot, &map, 0))
        .map_err(abi::failed(map_name::FLOWS))
}

/// Gives a slot its quota.
pub(super) fn give_pending(
    pending: &mut ArrayOfMaps<MapData, PodPending>,
    slot: u32,
) -> Result<()> {
    let map = PodPending::create(FLOWS_PER_POD, BPF_F_NO_PREALLOC);
    map.and_then(|map| pending.set(slot, &map, 0))
        .map_err(abi::failed(map_name::PENDING))
}

/// The program and the slot of a link that serves one pod, by its name.
pub(super) fn instance(link: &str) -> Option<(&'static str, u32)> {
    if let Some(slot) = link.strip_prefix("steer-") {
        return Some((object::STEER, slot.parse().ok()?));
    }
    let (slot, device) = link.strip_prefix("shut-")?.split_once('-')?;
    let (ifindex, _way) = device.split_once('-')?;
    ifindex.parse::<u32>().ok()?;
    Some((SHUT, slot.parse().ok()?))
}

pub(super) fn steer_link(slot: u32) -> String {
    format!("steer-{slot}")
}

pub(super) fn check(slot: u32) -> Result<()> {
    if slot < MAX_PODS {
        return Ok(());
    }
    Err(CaptureError::Slot {
        slot,
        max: MAX_PODS,
    })
}

/// An entry that isn't there is removed already. Sockmaps say `EINVAL`.
pub(super) fn absent(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(ref e))
            if matches!(e.io_error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn inode(file: BorrowedFd<'_>) -> Result<u64> {
    nix::sys::stat::fstat(file)
        .map(|stat| stat.st_ino)
        .map_err(io::Error::from)
        .map_err(error::io(
            "asking for the inode of",
            format!("/proc/self/fd/{}", file.as_raw_fd()),
        ))
}
