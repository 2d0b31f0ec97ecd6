//! Blocks of addresses: which of them hold an address, by one binary search.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// Blocks of both families. IPv4 is never v4-mapped here.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    nodes: Vec<Node>,
    v4: Runs,
    v6: Runs,
}

#[derive(Clone, Debug)]
struct Node {
    block: IpNet,
    /// The smallest block around it.
    parent: Option<usize>,
}

/// All addresses of a family, cut into runs, each with the smallest block that holds it.
#[derive(Clone, Debug, Default)]
struct Runs {
    /// The first address of each run, ascending.
    starts: Vec<u128>,
    nodes: Vec<Option<usize>>,
}

impl Blocks {
    pub(super) fn new(blocks: &BTreeSet<IpNet>) -> Self {
        // In their order blocks come after those that hold them.
        let mut all = Self::default();
        let mut open: Vec<usize> = Vec::new();
        for block in blocks {
            let around = |last: &IpNet| last.contains(block);
            all.close(&mut open, |last| !around(last));
            let node = all.nodes.len();
            all.nodes.push(Node {
                block: *block,
                parent: open.last().copied(),
            });
            all.runs(block).add(bits(block.network()), Some(node));
            open.push(node);
        }
        all.close(&mut open, |_| true);
        all
    }

    /// The blocks, those that hold others before them.
    pub(super) fn blocks(&self) -> impl Iterator<Item = IpNet> {
        self.nodes.iter().map(|node| node.block)
    }

    /// The places in [`Self::blocks`] of those that hold an address, smallest first.
    pub(super) fn holding(&self, address: IpAddr) -> impl Iterator<Item = usize> {
        let smallest = match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
        .node(bits(address));
        std::iter::successors(smallest, |&node| self.nodes[node].parent)
    }

    /// The place of the smallest block around a block.
    pub(super) fn parent(&self, node: usize) -> Option<usize> {
        self.nodes[node].parent
    }

    /// Ends the innermost open blocks as long as they are as asked.
    fn close(&mut self, open: &mut Vec<usize>, ends: impl Fn(&IpNet) -> bool) {
        while let Some(&node) = open.last() {
            let block = self.nodes[node].block;
            if !ends(&block) {
                return;
            }
            open.pop();
            if let Some(next) = bits(block.broadcast()).checked_add(1) {
                self.runs(&block).add(next, open.last().copied());
            }
        }
    }

    fn runs(&mut self, block: &IpNet) -> &mut Runs {
        match block {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }
}

impl Runs {
    fn add(&mut self, start: u128, node: Option<usize>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.nodes.pop();
        }
        self.starts.push(start);
        self.nodes.push(node);
    }

    fn node(&self, address: u128) -> Option<usize> {
        let after = self.starts.partition_point(|&start| start <= address);
        self.nodes[after.checked_sub(1)?]
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Blocks near both ends and in one another.
    fn block() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| {
            let bits = bits & 0xc000_0003 | if bits & 4 == 4 { 0x3fff_fffc } else { 0 };
            IpNet::new(IpAddr::V4(bits.into()), len)
        });
        let v6 = (any::<u128>(), 0u8..=128).prop_map(|(bits, len)| {
            let middle = if bits & 4 == 4 {
                u128::MAX >> 2 & !3
            } else {
                0
            };
            IpNet::new(IpAddr::V6((bits & (3 << 126 | 3) | middle).into()), len)
        });
        prop_oneof![v4, v6].prop_map(|block| block.unwrap().trunc())
    }

    proptest! {
        #[test]
        fn the_blocks_that_hold_an_address_are_those_that_a_scan_finds(
            blocks in prop::collection::btree_set(block(), 0..20),
            addresses in prop::collection::vec(block(), 1..20),
        ) {
            let index = Blocks::new(&blocks);
            let in_order: Vec<_> = index.blocks().collect();
            let ends = blocks.iter().flat_map(|b| [b.network(), b.broadcast()]);
            for address in ends.chain(addresses.iter().map(IpNet::addr)) {
                let mut scanned: Vec<_> = blocks.iter().filter(|b| b.contains(&address)).copied().collect();
                scanned.sort_by_key(|b| std::cmp::Reverse(b.prefix_len()));
                let found: Vec<_> = index.holding(address).map(|n| in_order[n]).collect();
                prop_assert_eq!(found, scanned);
            }
        }
    }
}
