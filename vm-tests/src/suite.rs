//! Integration tests of other crates that run in guests as they are.

/// A test binary: each of its tests is a case `<name>::<test>`, in a process of its own.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Its name, and the binary's name in the guest's `/suites`.
    pub name: &'static str,
    /// The package it is from.
    pub package: &'static str,
    /// The test target.
    pub target: &'static str,
    /// How long one test may take, in seconds.
    pub timeout_s: u64,
}

/// All of them.
pub const SUITES: &[Suite] = &[Suite {
    name: "capture",
    package: "mesh-agent",
    target: "capture",
    timeout_s: 120,
}];

/// A test that does not apply on a kernel prints a line that begins so, then the reason, and
/// returns.
pub const SKIPPED: &str = "test skipped: ";
