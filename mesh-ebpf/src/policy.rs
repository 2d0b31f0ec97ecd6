//! What a pod's policy says of a remote (`mesh_common::policy` has the layout).

use aya_ebpf::btf_maps::lpm_trie::Key;
use mesh_common::{
    POLICY_ALLOW, POLICY_AUDIT, POLICY_BLOCK, POLICY_CLASS_BITS, POLICY_DENY, POLICY_HEAD_BITS,
    POLICY_PORTS, POLICY_SOME_UDP, POLICY_TCP_OUT, PolicyEntry, PolicyKey,
};

use crate::address::Address;
use crate::maps::{POLICIES, PodPolicy};

/// Class, port and a whole address.
const KEY_BITS: u32 = POLICY_HEAD_BITS + 128;

/// The longest block of a pod's policy that holds a remote.
pub(crate) struct Block {
    policy: &'static PodPolicy,
    remote: Address,
    entry: PolicyEntry,
}

/// `None` if the pod has no policy.
#[inline(always)]
pub(crate) fn block(slot: u32, remote: Address) -> Option<Block> {
    let policy = POLICIES.get(slot)?;
    let entry = *find(policy, POLICY_BLOCK, 0, remote)?;
    Some(Block {
        policy,
        remote,
        entry,
    })
}

/// Whether the pod may not connect there, whatever its worker would find out.
#[inline(always)]
pub(crate) fn denies_tcp(slot: u32, remote: Address, port: u16) -> bool {
    block(slot, remote).is_some_and(|block| {
        !block.is_audit() && block.verdict(POLICY_TCP_OUT, port) == POLICY_DENY
    })
}

impl Block {
    /// Whether the pod is in audit.
    #[inline(always)]
    pub(crate) fn is_audit(&self) -> bool {
        self.entry.bits & POLICY_AUDIT != 0
    }

    /// Whether some UDP with the remote is allowed.
    #[inline(always)]
    pub(crate) fn allows_some_udp(&self) -> bool {
        self.entry.bits & POLICY_SOME_UDP != 0
    }

    #[inline(always)]
    pub(crate) fn allows(&self, class: u16, port: u16) -> bool {
        self.verdict(class, port) == POLICY_ALLOW
    }

    /// The port's own verdict, or else the one for all ports; 0 if there is neither.
    #[inline(always)]
    fn verdict(&self, class: u16, port: u16) -> u32 {
        let bits = self.entry.bits >> (POLICY_CLASS_BITS * u32::from(class));
        if bits & POLICY_PORTS != 0
            && let Some(entry) = find(self.policy, class, port, self.remote)
            // Of a longer block it can't be, of a shorter one it doesn't count.
            && entry.prefix_len == self.entry.prefix_len
        {
            return entry.bits;
        }
        bits & (POLICY_ALLOW | POLICY_DENY)
    }
}

#[inline(always)]
fn find(
    policy: &'static PodPolicy,
    class: u16,
    port: u16,
    remote: Address,
) -> Option<&'static PolicyEntry> {
    let address = remote.bytes();
    let data = PolicyKey {
        class,
        port,
        address,
    };
    policy.get(&Key::new(KEY_BITS, data))
}
