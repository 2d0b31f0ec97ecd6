//! Clauses by what a peer must have for them: a look-up visits what is filed under the peer's
//! own attributes, and nothing else.
//!
//! A clause is filed under its rarest attribute, counted together with its port. Inside such a
//! bucket a word of 64 bits rules out nearly all whose other attributes the peer lacks. Hashes
//! only lead to candidates; each is compared in full, so a collision costs time and no more.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::net::IpAddr;
use std::ops::Range;

use super::attributes::{
    ANYTHING, AlreadyHashed, Attribute, attributes_of, bit, block_hash, each_attribute, finish, mix,
};
use super::blocks::Blocks;
use super::clause::Condition;
use super::{Direction, Peer, PortTerm, Protocol};

/// A clause to be filed: of several that match, the one with the lowest rank is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Filed {
    pub(super) direction: Direction,
    pub(super) port: PortTerm,
    pub(super) condition: Condition,
    pub(super) rank: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// For each attribute that something is filed under: the bucket of every port, which says
    /// whether single ports have buckets too, and those.
    buckets: HashMap<u64, Bucket, BuildHasherDefault<AlreadyHashed>>,
    /// Bucket by bucket, in each by rank.
    entries: Vec<Entry>,
    /// For each entry one bit for each attribute that its condition asks for beside the one it
    /// is filed under; of attributes that differ some share a bit.
    wanted: Vec<u64>,
    conditions: Vec<Condition>,
    /// Blocks that something is filed under, with their hashes.
    filed_blocks: Blocks,
    hashes: Vec<u64>,
    /// All blocks, with the bits that an address in one has for it and for those around it.
    blocks: Blocks,
    bits: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
struct Bucket {
    entries: Range<u32>,
    single_ports: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    rank: u32,
    condition: u32,
}

impl Index {
    pub(super) fn new(clauses: Vec<Filed>) -> Self {
        // Of clauses that say the same the lowest rank is enough.
        let mut lowest = HashMap::new();
        for c in clauses {
            let rank = lowest
                .entry((c.direction, c.port, c.condition))
                .or_insert(c.rank);
            *rank = c.rank.min(*rank);
        }
        let lowest = lowest.into_iter();
        let distinct = lowest.map(|((direction, port, condition), rank)| Filed {
            direction,
            port,
            condition,
            rank,
        });
        Self::file(distinct.collect())
    }

    fn file(clauses: Vec<Filed>) -> Self {
        let blocks = clauses.iter().filter_map(|c| c.condition.cidr).collect();
        let blocks = Blocks::new(&blocks);
        let crowds = Crowds::new(&clauses, &blocks);
        let mut numbers: HashMap<Condition, u32> = HashMap::new();
        let mut filed: Vec<(u64, Entry, u64)> = Vec::new();
        let mut buckets: HashMap<u64, Bucket, _> = HashMap::default();
        let mut filed_blocks = BTreeSet::new();
        for c in clauses {
            let attributes = attributes_of(&c.condition);
            let rarest = attributes.iter().min_by_key(|a| crowds.around(a, &c));
            // A condition that asks for nothing is filed under that.
            let hash = rarest.map_or(ANYTHING, |a| a.hash);
            filed_blocks.extend(rarest.and_then(|a| a.block));
            let others = attributes.iter().filter(|a| a.hash != hash);
            let wanted = others.fold(0, |all, a| all | bit(a.hash));
            let next = u32_of(numbers.len());
            let entry = Entry {
                rank: c.rank,
                condition: *numbers.entry(c.condition).or_insert(next),
            };
            let every = PortTerm {
                port: None,
                ..c.port
            };
            let all_ports = buckets.entry(bucket(hash, c.direction, every));
            all_ports.or_default().single_ports |= c.port.port.is_some();
            filed.push((bucket(hash, c.direction, c.port), entry, wanted));
        }
        filed.sort_unstable_by_key(|(key, entry, _)| (*key, entry.rank, entry.condition));

        let mut at = 0;
        for run in filed.chunk_by(|one, next| one.0 == next.0) {
            let end = at + u32_of(run.len());
            buckets.entry(run[0].0).or_default().entries = at..end;
            at = end;
        }
        let mut conditions: Vec<_> = numbers.into_iter().collect();
        conditions.sort_unstable_by_key(|(_, number)| *number);
        let filed_blocks = Blocks::new(&filed_blocks);
        let mut bits: Vec<u64> = Vec::new();
        for (node, block) in blocks.blocks().enumerate() {
            let around = blocks.parent(node).map_or(0, |parent| bits[parent]);
            bits.push(around | bit(block_hash(block)));
        }
        Self {
            buckets,
            hashes: filed_blocks.blocks().map(block_hash).collect(),
            filed_blocks,
            bits,
            wanted: filed.iter().map(|(.., wanted)| *wanted).collect(),
            entries: filed.into_iter().map(|(_, entry, _)| entry).collect(),
            conditions: conditions
                .into_iter()
                .map(|(condition, _)| condition)
                .collect(),
            blocks,
        }
    }

    /// The lowest rank of a clause that matches.
    pub(super) fn find(
        &self,
        direction: Direction,
        protocol: Protocol,
        port: u16,
        peer: &Peer<'_>,
    ) -> Option<u32> {
        let mut search = Search {
            index: self,
            direction,
            protocol,
            port,
            peer,
            address: peer.address.to_canonical(),
            has: None,
            best: u32::MAX,
        };
        search.visit(ANYTHING);
        each_attribute(peer, |hash| search.visit(hash));
        for block in self.filed_blocks.holding(search.address) {
            search.visit(self.hashes[block]);
        }
        (search.best != u32::MAX).then_some(search.best)
    }
}

/// How many clauses a look-up may have to visit for an attribute.
struct Crowds<'a> {
    sizes: HashMap<u64, u32>,
    blocks: &'a Blocks,
    /// Of the blocks.
    hashes: Vec<u64>,
}

impl<'a> Crowds<'a> {
    fn new(clauses: &[Filed], blocks: &'a Blocks) -> Self {
        let mut sizes: HashMap<u64, u32> = HashMap::new();
        for c in clauses {
            for attribute in attributes_of(&c.condition) {
                let key = bucket(attribute.hash, c.direction, c.port);
                *sizes.entry(key).or_default() += 1;
            }
        }
        Self {
            sizes,
            blocks,
            hashes: blocks.blocks().map(block_hash).collect(),
        }
    }

    /// With this attribute and the clause's port. An address is in every block around its own,
    /// and they are all visited.
    fn around(&self, attribute: &Attribute, clause: &Filed) -> u32 {
        let size = |hash| {
            let key = bucket(hash, clause.direction, clause.port);
            self.sizes.get(&key).copied().unwrap_or(0)
        };
        let Some(block) = attribute.block else {
            return size(attribute.hash);
        };
        let blocks = self.blocks.holding(block.network());
        let around = blocks.map(|node| self.hashes[node]);
        around
            .skip_while(|hash| *hash != attribute.hash)
            .map(size)
            .sum()
    }
}

/// One look-up.
struct Search<'a> {
    index: &'a Index,
    direction: Direction,
    protocol: Protocol,
    port: u16,
    peer: &'a Peer<'a>,
    address: IpAddr,
    /// A bit for each attribute of the peer, once one is asked for.
    has: Option<u64>,
    best: u32,
}

impl<'a> Search<'a> {
    /// Looks through what is filed under an attribute that the peer has.
    fn visit(&mut self, hash: u64) {
        let Some(all_ports) = self.bucket(hash, None) else {
            return;
        };
        self.scan(all_ports);
        if all_ports.single_ports
            && let Some(one_port) = self.bucket(hash, Some(self.port))
        {
            self.scan(one_port);
        }
    }

    fn bucket(&self, hash: u64, port: Option<u16>) -> Option<&'a Bucket> {
        let protocol = self.protocol;
        let port = PortTerm { port, protocol };
        self.index.buckets.get(&bucket(hash, self.direction, port))
    }

    fn scan(&mut self, bucket: &Bucket) {
        let range = bucket.entries.start as usize..bucket.entries.end as usize;
        let lacks = match self.index.wanted[range.clone()] {
            [] => return,
            // What asks for nothing more needs no comparison.
            [0] => 0,
            _ => !self.has(),
        };
        let mut start = range.start;
        // Eight at a time, as the processor can.
        for eight in self.index.wanted[range].chunks(8) {
            let first = start;
            start += eight.len();
            if !eight.iter().fold(false, |any, w| any | (w & lacks == 0)) {
                continue;
            }
            for (entry, wanted) in self.index.entries[first..].iter().zip(eight) {
                if entry.rank >= self.best {
                    return;
                }
                let condition = &self.index.conditions[entry.condition as usize];
                if wanted & lacks == 0 && condition.holds(self.peer, self.address) {
                    self.best = entry.rank;
                    return;
                }
            }
        }
    }

    fn has(&mut self) -> u64 {
        *self.has.get_or_insert_with(|| {
            let mut has = 0;
            each_attribute(self.peer, |hash| has |= bit(hash));
            let smallest = self.index.blocks.holding(self.address).next();
            has | smallest.map_or(0, |block| self.index.bits[block])
        })
    }
}

fn bucket(hash: u64, direction: Direction, term: PortTerm) -> u64 {
    let port = term.port.map_or(1 << 16, u64::from);
    let protocol = u64::from(term.protocol == Protocol::Udp) << 17;
    let direction = u64::from(direction == Direction::Outbound) << 18;
    finish(mix(hash, port | protocol | direction))
}

fn u32_of(count: usize) -> u32 {
    u32::try_from(count).expect("fewer than 2^32 clauses")
}
