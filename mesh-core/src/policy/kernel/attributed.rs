//! Terms that name peers by more than their address.

use std::collections::HashMap;

use super::super::Peer;
use super::super::attributes::{attributes_of, each_attribute};
use super::super::clause::Condition;
use super::said::Said;

/// Terms by the hash of the rarest attribute they ask for.
#[derive(Default)]
pub(super) struct Attributed(HashMap<u64, Vec<(Condition, Said)>>);

impl Attributed {
    pub(super) fn new(terms: Vec<(Condition, Said)>) -> Self {
        let mut crowds: HashMap<u64, u32> = HashMap::new();
        for hash in terms.iter().flat_map(|(condition, _)| named(condition)) {
            *crowds.entry(hash).or_default() += 1;
        }
        let mut all = Self::default();
        for (condition, said) in terms {
            // A term that asks for no more than a block is none of these.
            if let Some(rarest) = named(&condition).min_by_key(|hash| crowds[hash]) {
                all.0.entry(rarest).or_default().push((condition, said));
            }
        }
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is said of a peer.
    pub(super) fn each(&self, peer: &Peer<'_>, mut visit: impl FnMut(&Said)) {
        if self.is_empty() {
            return;
        }
        each_attribute(peer, |hash| {
            for (condition, said) in self.0.get(&hash).into_iter().flatten() {
                if condition.holds(peer, peer.address) {
                    visit(said);
                }
            }
        });
    }
}

/// Hashes of what a condition asks for beside a block.
fn named(condition: &Condition) -> impl Iterator<Item = u64> {
    let attributes = attributes_of(condition).into_iter();
    attributes.filter(|a| a.block.is_none()).map(|a| a.hash)
}
