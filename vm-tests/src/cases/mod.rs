//! The cases, a file per topic.

mod allotment;
mod boot;
mod budgets;
mod capabilities;
mod clock;
mod doomed;
mod missing;
mod nodes;
mod programs;
mod runtime;
mod upgrade;

use crate::Case;

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [
        allotment::CASES,
        boot::CASES,
        budgets::CASES,
        capabilities::CASES,
        clock::CASES,
        missing::CASES,
        nodes::CASES,
        programs::CASES,
        runtime::CASES,
        upgrade::CASES,
    ]
    .into_iter()
    .flatten()
}

/// Cases that must fail, in this order, but the last.
#[must_use]
pub fn doomed() -> &'static [Case] {
    doomed::CASES
}

/// A case by its name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Case> {
    all().chain(doomed()).find(|case| case.name == name)
}
