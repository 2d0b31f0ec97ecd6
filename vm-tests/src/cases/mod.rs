//! The cases, a file per topic.

mod boot;
mod nodes;

use crate::Case;

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [boot::CASES, nodes::CASES].into_iter().flatten()
}
