//! What a peer has and a clause may be filed under, as hashes.

use std::hash::Hasher;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Peer;
use super::clause::Condition;
use crate::identity::Identity;

/// What a clause may be filed under.
pub(super) struct Attribute {
    pub(super) hash: u64,
    pub(super) block: Option<IpNet>,
}

/// The hash under which conditions without attributes are.
pub(super) const ANYTHING: u64 = 0x9ae1_6a3b_2f90_404f;

pub(super) fn attributes_of(condition: &Condition) -> Vec<Attribute> {
    let identity = condition.identity.as_ref().map(identity_hash);
    let namespace = condition.namespace.as_deref().map(|ns| text_hash(2, &[ns]));
    let service = condition.service.as_deref().map(|key| text_hash(3, &[key]));
    let labels = condition.labels.iter();
    let labels = labels.map(|(key, value)| text_hash(4, &[key, value]));
    let named = identity
        .into_iter()
        .chain(namespace)
        .chain(service)
        .chain(labels);
    let named = named.map(|hash| Attribute { hash, block: None });
    let block = condition.cidr.map(|block| Attribute {
        hash: block_hash(block),
        block: Some(block),
    });
    named.chain(block).collect()
}

/// The hashes that [`attributes_of`] has for what the peer has, but for blocks.
pub(super) fn each_attribute(peer: &Peer<'_>, mut visit: impl FnMut(u64)) {
    if let Some(id) = peer.identity {
        visit(identity_hash(id));
        visit(text_hash(2, &[id.namespace()]));
    }
    for key in peer.services {
        visit(text_hash(3, &[key]));
    }
    for (key, value) in peer.labels {
        visit(text_hash(4, &[key, value]));
    }
}

pub(super) fn bit(hash: u64) -> u64 {
    1 << (hash >> 58)
}

pub(super) fn block_hash(block: IpNet) -> u64 {
    let (family, bits) = match block.addr() {
        IpAddr::V4(v4) => (5, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (6, v6.to_bits()),
    };
    let hash = bytes_hash(family, &bits.to_le_bytes());
    finish(mix(hash, block.prefix_len().into()))
}

fn identity_hash(id: &Identity) -> u64 {
    let domain = id.trust_domain().as_str();
    text_hash(1, &[domain, id.namespace(), id.service_account()])
}

fn text_hash(kind: u64, texts: &[&str]) -> u64 {
    let hash = |hash, text: &&str| bytes_hash(hash, text.as_bytes());
    finish(texts.iter().fold(kind, hash))
}

fn bytes_hash(hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    // The length keeps ("a", "bc") apart from ("ab", "c").
    let hash = mix(hash, bytes.len() as u64);
    let word = |hash, word: &[u8; 8]| mix(hash, u64::from_le_bytes(*word));
    let hash = words.iter().fold(hash, word);
    // The last eight bytes once more are quicker than those that are left, one by one.
    match bytes.last_chunk::<8>() {
        Some(last) => word(hash, last),
        None => mix(hash, rest.iter().fold(0, |w, b| w << 8 | u64::from(*b))),
    }
}

pub(super) fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// Spreads what differs over all bits.
pub(super) fn finish(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// For keys that are hashes themselves.
#[derive(Clone, Debug, Default)]
pub(super) struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes_hash(self.0, bytes);
    }
}
