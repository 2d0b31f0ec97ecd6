//! Why a flow was refused or failed: one list for kernel programs, workers, logs and
//! metrics, each with a stable code and two texts for the operator. `docs/REASONS.md` is
//! generated from it.

mod list;

use std::fmt;

pub use list::Reason;

/// Reasons that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What they have in common.
    pub title: &'static str,
    /// What an app sees of them, unless [`Reason::shows`] says something else.
    pub shows: &'static str,
    /// The reasons.
    pub reasons: &'static [Reason],
}

impl Reason {
    /// Its group.
    #[must_use]
    pub fn group(self) -> &'static Group {
        let mut groups = Self::GROUPS.iter();
        let group = groups.find(|group| group.reasons.contains(&self));
        group.expect("the list has each reason in a group")
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
