//! What was asked of which row.

use super::results::Results;
use super::ways::{MESH, PEER};

/// A condition on the mesh's median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// As a multiple of the peer's.
    TimesAtLeast(f64),
    /// As a multiple of the peer's.
    TimesAtMost(f64),
    /// As it is.
    Most(f64),
}

use Goal::{Most, TimesAtLeast, TimesAtMost};

/// Rows and what was asked of them, before any of it was measured.
pub(crate) const GOALS: &[(&str, Goal)] = &[
    ("Gbit/s, 1 stream", TimesAtLeast(1.7)),
    ("Gbit/s, 8 streams", TimesAtLeast(1.7)),
    ("Gbit/s, 1 stream, reverse", TimesAtLeast(1.7)),
    ("CPU s a GiB, 1 stream", TimesAtMost(0.6)),
    ("CPU s a GiB, 8 streams", TimesAtMost(0.6)),
    ("CPU s a GiB, 1 stream, reverse", TimesAtMost(0.6)),
    ("requests/s, 1 connection", TimesAtLeast(1.5)),
    ("requests/s, 16 connections", TimesAtLeast(1.5)),
    ("requests/s, 64 connections", TimesAtLeast(1.5)),
    ("p99 µs, 16 connections", TimesAtMost(0.6)),
    ("p99 µs, at half the peer's most", TimesAtMost(0.6)),
    ("CPU µs a request, 16 connections", TimesAtMost(0.6)),
    ("new connections/s, 1 at a time", TimesAtLeast(2.5)),
    ("new connections/s, 16 at a time", TimesAtLeast(2.5)),
    ("CPU µs a new connection, 16 at a time", TimesAtMost(0.4)),
    ("listen overflows, 2,000 at once", Most(0.0)),
    ("p99 ms, 2,000 at once", Most(200.0)),
    ("KiB an idle connection, a side", TimesAtMost(0.8)),
    ("MiB, supervisor, 100 idle pods", Most(12.0)),
    ("MiB, a worker, 100 idle pods", Most(0.7)),
    ("MiB in all, 100 idle pods", Most(80.0)),
    ("p99 ms, enrol one more, 200 pods", Most(10.0)),
];

/// The goal of a row, if it has one.
pub(crate) fn of(row: &str) -> Option<Goal> {
    let found = GOALS.iter().find(|(name, _)| *name == row);
    found.map(|(_, goal)| *goal)
}

/// The mesh's median of a row as a multiple of another way's.
pub(crate) fn ratio(results: &Results, row: &str, way: &str) -> Option<f64> {
    let mesh = results.spread(row, MESH)?.median;
    let other = results.spread(row, way)?.median;
    (other > 0.0).then_some(mesh / other)
}

impl Goal {
    /// None where the mesh, or the peer that it is compared with, was not measured.
    pub(crate) fn is_reached(self, results: &Results, row: &str) -> Option<bool> {
        let ratio = || ratio(results, row, PEER);
        Some(match self {
            TimesAtLeast(goal) => ratio()? >= goal,
            TimesAtMost(goal) => ratio()? <= goal,
            Most(goal) => results.spread(row, MESH)?.median <= goal,
        })
    }

    /// For people.
    pub(crate) fn text(self) -> String {
        match self {
            TimesAtLeast(goal) => format!("≥ {goal} ×"),
            TimesAtMost(goal) => format!("≤ {goal} ×"),
            Most(goal) => format!("≤ {goal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_goal_is_reached_at_its_very_value() {
        let mut results = Results::new(Value::Null);
        results.add("row", PEER, 10.0);
        results.add("row", MESH, 6.0);
        let reached = |goal: Goal| goal.is_reached(&results, "row");
        assert_eq!(reached(TimesAtMost(0.6)), Some(true));
        assert_eq!(reached(TimesAtMost(0.59)), Some(false));
        assert_eq!(reached(TimesAtLeast(0.61)), Some(false));
        assert_eq!(reached(Most(6.0)), Some(true));
        assert_eq!(Most(6.0).is_reached(&results, "another"), None);
    }
}
