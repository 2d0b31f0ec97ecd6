//! A pod's policy in the kernel: a trie of its own, made complete and then put into its slot.
//! So a swap is one step, and a crash on the way leaves nothing: a trie in no slot goes with
//! the process that made it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use ipnet::Ipv6Net;
use mesh_common::{
    POLICY_ALLOW, POLICY_AUDIT, POLICY_BLOCK, POLICY_CLASS_BITS, POLICY_DENY,
    POLICY_ENTRIES_PER_POD, POLICY_HEAD_BITS, POLICY_PORTS, POLICY_SOME_UDP, POLICY_TCP_OUT,
    POLICY_UDP_IN, POLICY_UDP_OUT, PolicyEntry, PolicyKey, map_name,
};
use mesh_core::policy::kernel::{KernelClass, KernelPolicy, KernelVerdict};

use super::abi::{self, Abi};
use super::error::{self, CaptureError, Result};
use super::pods::check;
use super::{Capture, bpf, inner};

/// One pod's policy for [`Capture::set_policies`].
#[derive(Clone, Copy, Debug)]
pub struct SlotPolicy<'a> {
    /// The pod's slot.
    pub slot: u32,
    /// What its policy says to the kernel.
    pub policy: &'a KernelPolicy,
    /// Whether what it refuses is counted and let through.
    pub audit: bool,
}

impl Capture {
    /// Puts a pod's policy into force in the kernel programs, in one step. When it returns, no
    /// program decides by the policy before it any more; the kernel takes some 10 ms for that.
    ///
    /// # Errors
    /// If a map can't be written; the policy before it stays in force.
    pub fn set_policy(&mut self, slot: u32, policy: &KernelPolicy, audit: bool) -> Result<()> {
        self.set_policies(&[SlotPolicy {
            slot,
            policy,
            audit,
        }])
    }

    /// As [`Self::set_policy`], for several pods: each is swapped in one step, and the wait for
    /// running programs is one for all of them.
    ///
    /// # Errors
    /// If a map can't be written. Then no pod's policy is changed, or, should the kernel refuse
    /// one of the swaps themselves, those of the pods before it are.
    pub fn set_policies(&mut self, policies: &[SlotPolicy<'_>]) -> Result<()> {
        let tries = policies.iter().map(|p| {
            check(p.slot)?;
            build(p.slot, &entries(p.policy, p.audit))
        });
        let tries: Vec<OwnedFd> = tries.collect::<Result<_>>()?;
        let slots: Vec<u32> = policies.iter().map(|p| p.slot).collect();
        let tries_raw: Vec<i32> = tries.iter().map(AsRawFd::as_raw_fd).collect();
        let outer =
            abi::data(&self.pins, map_name::POLICIES).map_err(abi::failed(map_name::POLICIES))?;
        bpf::update_batch(outer.fd().as_fd(), &slots, &tries_raw).map_err(error::io(
            "swapping the policy in",
            self.pins.map(map_name::POLICIES),
        ))
    }

    /// Leaves a slot without policy: nothing is denied to TCP, and no UDP is allowed.
    pub(super) fn clear_policy(&mut self, slot: u32) -> Result<()> {
        match self.maps.policies.get(&slot, 0) {
            // Taking out waits for running programs.
            Err(MapError::KeyNotFound) => Ok(()),
            _ => self.remove_inner(map_name::POLICIES, slot),
        }
    }
}

/// A trie's entries, as the kernel takes them.
#[derive(Default)]
struct Entries {
    keys: Vec<Key<Abi<PolicyKey>>>,
    values: Vec<Abi<PolicyEntry>>,
}

impl Entries {
    fn add(&mut self, class: u16, port: u16, block: Ipv6Net, bits: u32) {
        let prefix_len = u32::from(block.prefix_len());
        let address = block.network().octets();
        let key = PolicyKey {
            class,
            port,
            address,
        };
        self.keys
            .push(Key::new(POLICY_HEAD_BITS + prefix_len, Abi(key)));
        self.values.push(Abi(PolicyEntry { prefix_len, bits }));
    }
}

fn entries(policy: &KernelPolicy, audit: bool) -> Entries {
    let pod = if audit { POLICY_AUDIT } else { 0 };
    let mut entries = Entries::default();
    for (&block, verdicts) in &policy.prefixes {
        let mut bits = pod;
        for (&(class, port), &verdict) in verdicts {
            let (class, udp) = match class {
                KernelClass::TcpOut => (POLICY_TCP_OUT, false),
                KernelClass::UdpOut => (POLICY_UDP_OUT, true),
                KernelClass::UdpIn => (POLICY_UDP_IN, true),
            };
            let verdict = match verdict {
                KernelVerdict::Allow => POLICY_ALLOW,
                KernelVerdict::Deny => POLICY_DENY,
            };
            let own = if port == 0 {
                verdict
            } else {
                entries.add(class, port, block, verdict);
                POLICY_PORTS
            };
            bits |= own << (POLICY_CLASS_BITS * u32::from(class));
            if udp && verdict == POLICY_ALLOW {
                bits |= POLICY_SOME_UDP;
            }
        }
        entries.add(POLICY_BLOCK, 0, block, bits);
    }
    let everywhere = Ipv6Net::default();
    if !policy.prefixes.contains_key(&everywhere) {
        entries.add(POLICY_BLOCK, 0, everywhere, pod);
    }
    entries
}

fn build(slot: u32, entries: &Entries) -> Result<OwnedFd> {
    let count = u32::try_from(entries.keys.len()).unwrap_or(u32::MAX);
    if count > POLICY_ENTRIES_PER_POD {
        return Err(CaptureError::PolicySize {
            slot,
            entries: entries.keys.len(),
            max: POLICY_ENTRIES_PER_POD,
        });
    }
    let make = || {
        let trie = inner::create_policy(count)?;
        bpf::update_batch(trie.as_fd(), &entries.keys, &entries.values)?;
        Ok(trie)
    };
    make().map_err(error::io("making a new policy for", format!("slot {slot}")))
}
