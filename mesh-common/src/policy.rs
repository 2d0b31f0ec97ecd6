//! A pod's policy as the programs look it up: one longest-prefix trie per pod, replaced whole.
//!
//! Two kinds of entries share the trie. A *block* entry ([`POLICY_BLOCK`]) says what its block of
//! addresses has for each class: the verdict for all ports, and whether some ports have their own.
//! A *port* entry (class 1 to 3) is such a port's verdict. Of two entries that hold one address,
//! equal prefix lengths mean the same block: a look-up takes the longest block, and a port's
//! verdict only if it is of that block. A trie always has a block entry for `::/0`, so that what
//! holds for the whole pod is found whatever the address is.

/// What follows the prefix length in a key of the trie. Class and port are always part of the
/// prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyKey {
    /// [`POLICY_BLOCK`], or the class of a port's own verdict.
    pub class: u16,
    /// The port; 0 in block entries.
    pub port: u16,
    /// The remote's address, or the first of a block's.
    pub address: [u8; 16],
}

/// An entry of the trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyEntry {
    /// Bits of the address that the entry's block has in common.
    pub prefix_len: u32,
    /// Block entry: `POLICY_AUDIT`, `POLICY_SOME_UDP` and [`POLICY_CLASS_BITS`] bits per class.
    /// Port entry: [`POLICY_ALLOW`] or [`POLICY_DENY`].
    pub bits: u32,
}

/// Bits of [`PolicyKey`] before the address.
pub const POLICY_HEAD_BITS: u32 = 32;

/// Class of block entries.
pub const POLICY_BLOCK: u16 = 0;
/// TCP from the pod, by the port it dials: refused on [`POLICY_DENY`].
pub const POLICY_TCP_OUT: u16 = 1;
/// UDP in both directions, by the remote's port: passes on [`POLICY_ALLOW`].
pub const POLICY_UDP_OUT: u16 = 2;
/// UDP in both directions, by the pod's port: passes on [`POLICY_ALLOW`].
pub const POLICY_UDP_IN: u16 = 3;

/// What class `c` has in a block entry stands `c` times so many bits from the lowest.
pub const POLICY_CLASS_BITS: u32 = 4;
/// Let through.
pub const POLICY_ALLOW: u32 = 1;
/// Refused.
pub const POLICY_DENY: u32 = 2;
/// Some ports of this class and block have entries of their own.
pub const POLICY_PORTS: u32 = 1 << 2;

/// In every block entry of a pod in audit: what policy refuses is counted and let through.
pub const POLICY_AUDIT: u32 = 1;
/// The block has UDP that is allowed: later fragments, which have no ports, pass.
pub const POLICY_SOME_UDP: u32 = 1 << 1;

/// Most entries of one pod's trie.
pub const POLICY_ENTRIES_PER_POD: u32 = 65_536;

const _: () = assert!(size_of::<PolicyKey>() == 20);
const _: () = assert!(size_of::<PolicyEntry>() == 8);
