//! The cases, a file for each group.

pub(super) mod enrolment;
pub(super) mod install;
pub(super) mod load;
pub(super) mod nodes;
pub(super) mod policy;
pub(super) mod probes;
pub(super) mod rollout;
pub(super) mod uninstall;

/// The apps that are enrolled, and those that are not.
pub(super) const SHOP: &str = include_str!("../objects/shop.yaml");
pub(super) const OUTSIDE: &str = include_str!("../objects/outside.yaml");
