//! docs/SCALE.md: what was measured, and what was asked for.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::super::spread::Spread;
use super::super::{machine, marks};
use super::results::Results;

/// A row: what it is, where it is in a run, by what it is multiplied, and what it was to be at most.
type Row = (&'static str, &'static str, f64, Option<f64>);

const ROWS: &[Row] = &[
    ("from source to ack, p50, ms", "/fared/p50_us", 1e-3, None),
    (
        "from source to ack, p99, ms",
        "/fared/p99_us",
        1e-3,
        Some(1_000.0),
    ),
    ("from source to ack, most, ms", "/fared/most_us", 1e-3, None),
    ("changes delivered", "/fared/deliveries", 1.0, None),
    ("changes lost", "/fared/behind_at_the_end", 1.0, Some(0.0)),
    ("control loads the mesh, s", "/loaded_s", 1.0, None),
    (
        "cold start until every node holds all, s",
        "/cold_start_s",
        1.0,
        None,
    ),
    (
        "control's memory, all nodes served, MiB",
        "/settled_mib",
        1.0,
        None,
    ),
    (
        "control's memory, after the changes, MiB",
        "/churned_mib",
        1.0,
        Some(2_048.0),
    ),
    (
        "control's processor while pods change",
        "/control_cpu",
        1.0,
        None,
    ),
    (
        "of that the source and its publication",
        "/churned/publishing_share",
        1.0,
        None,
    ),
    ("resources a node", "/fared/resources_per_node", 1.0, None),
    (
        "KiB to a node, first state",
        "/fared/first_bytes_per_node",
        1.0 / 1024.0,
        None,
    ),
    (
        "KiB to a node, changes",
        "/fared/later_bytes_per_node",
        1.0 / 1024.0,
        None,
    ),
    (
        "responses to a node, changes",
        "/fared/later_responses_per_node",
        1.0,
        None,
    ),
];

pub(super) fn write(workspace: &Path, results: &Results) -> Result<()> {
    let document = workspace.join("docs/SCALE.md");
    let folder = workspace.join("docs/scale");
    marks::write(&document, |_| measured(results), &folder, &files(results))
}

/// As [`ROWS`], of what was weighed once.
const AGENT: &[Row] = &[
    (
        "an agent's memory, small mesh, MiB",
        "/agent/alone_mib",
        1.0,
        None,
    ),
    (
        "workloads that it knows in this mesh",
        "/agent/held",
        1.0,
        None,
    ),
    (
        "an agent's memory, this mesh, MiB",
        "/agent/large_mib",
        1.0,
        Some(20.0),
    ),
    (
        "a change of the manifests until it is served, s",
        "/agent/manifests_read_s",
        1.0,
        None,
    ),
];

/// What goes beside the document.
fn files(results: &Results) -> Vec<(String, String)> {
    vec![("control.json".to_owned(), results.json())]
}

fn measured(results: &Results) -> String {
    let about = results.about();
    let mut text = format!(
        "{}. {} nodes, {} pods, {} services; the pods of a node talk to {} services; {} pods change \
         in a second, for {} s. Runs: {}; median, least and most.",
        machine::text(about),
        about["nodes"],
        about["workloads"],
        about["services"],
        about["talks_to"],
        about["rate"],
        about["seconds"],
        results.reps(),
    );
    if let Some(load) = about["load_before"].as_str() {
        let _ = write!(text, " Load before it began: {load}.");
    }
    text.push_str("\n\n");
    text.push_str(&table(results));
    text
}

/// A row for each number that was measured.
pub(super) fn table(results: &Results) -> String {
    let mut text = "| | measured | goal |\n|---|---:|---:|\n".to_owned();
    let mut add = |(what, _, factor, goal): &Row, spread: Spread| {
        let spread = spread.scaled(*factor);
        let goal = match goal {
            None => String::new(),
            Some(goal) if spread.median <= *goal => format!("≤ {goal}: reached"),
            Some(goal) => format!("≤ {goal}: missed"),
        };
        let _ = writeln!(text, "| {what} | {} | {goal} |", spread.text());
    };
    for row in ROWS {
        if let Some(spread) = results.spread(row.1) {
            add(row, spread);
        }
    }
    for row in AGENT {
        let number = results.about().pointer(row.1).and_then(Value::as_f64);
        if let Some(spread) = number.and_then(|number| Spread::of(&[number])) {
            add(row, spread);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_was_measured() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let document = std::fs::read_to_string(docs.join("SCALE.md")).unwrap();
        let folder = docs.join("scale");
        let results = Results::read(&folder.join("control.json")).unwrap();
        marks::assert_unchanged(
            &document,
            &measured(&results),
            &folder,
            &files(&results),
            "cargo xtask bench control --render docs/scale/control.json",
        );
    }
}
