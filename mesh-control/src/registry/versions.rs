//! The order of the versions that were served: versions themselves are hashes and have none.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Most that are known. Nodes are told of a new version within a second or so, and changes in each of
/// which hundreds of versions come are the most that is planned for.
const MAX_KNOWN: usize = 32_768;

/// The versions that were served of late, by number.
#[derive(Debug, Default)]
pub(super) struct Versions {
    last: u64,
    numbers: HashMap<Arc<str>, u64>,
    oldest_first: VecDeque<(u64, Arc<str>)>,
}

impl Versions {
    /// This one is served from now on.
    pub(super) fn note(&mut self, version: Arc<str>) {
        self.last += 1;
        self.numbers.insert(version.clone(), self.last);
        self.oldest_first.push_back((self.last, version));
        if self.oldest_first.len() > MAX_KNOWN
            && let Some((number, version)) = self.oldest_first.pop_front()
            // It may have been served again since.
            && self.numbers.get(&version) == Some(&number)
        {
            self.numbers.remove(&version);
        }
    }

    /// Number of the one that is served.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Number of one that was served of late.
    pub(super) fn number(&self, version: &str) -> Option<u64> {
        self.numbers.get(version).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_again_is_new_and_what_is_old_is_forgotten() {
        let mut versions = Versions::default();
        for version in ["a", "b", "a"] {
            versions.note(version.into());
        }
        assert_eq!(versions.number("a"), Some(3));
        assert_eq!(versions.number("b"), Some(2));
        assert_eq!(versions.number("c"), None);
        for number in 0..MAX_KNOWN - 1 {
            versions.note(number.to_string().into());
        }
        assert_eq!(
            (versions.number("a"), versions.number("b")),
            (Some(3), None)
        );
        versions.note("z".into());
        assert_eq!(versions.number("a"), None);
        assert_eq!(versions.numbers.len(), MAX_KNOWN);
    }
}
