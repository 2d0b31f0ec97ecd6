//! The measured part of `docs/PERFORMANCE.md`, and its plots.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use super::goals::{self, GOALS};
use super::results::Results;
use super::spread::Spread;
use super::ways::{ALL, MESH, PEER};
use super::{machine, marks, plot};

/// Fewer repetitions than that say little.
const ENOUGH: u64 = 3;

/// Puts it between the document's marks.
pub(crate) fn write(workspace: &Path, results: &Results) -> Result<()> {
    let document = workspace.join("docs/PERFORMANCE.md");
    let folder = workspace.join("docs/performance");
    marks::write(&document, |_| measured(results), &folder, &files(results))?;
    for row in without_result(results) {
        eprintln!("not measured: {row}");
    }
    Ok(())
}

/// Goals whose rows are missing.
fn without_result(results: &Results) -> Vec<&'static str> {
    let reached = |row: &str| goals::of(row)?.is_reached(results, row);
    let names = GOALS.iter().map(|(row, _)| *row);
    names.filter(|row| reached(row).is_none()).collect()
}

/// The ways that were measured, in the order of the columns.
fn ways(results: &Results) -> Vec<&'static str> {
    let has = |way: &str| {
        let rows = results.rows();
        rows.iter().any(|row| results.spread(row, way).is_some())
    };
    ALL.map(|[name, _]| name)
        .into_iter()
        .filter(|way| has(way))
        .collect()
}

/// What goes beside the document.
fn files(results: &Results) -> Vec<(String, String)> {
    let mut files = vec![
        ("bench.json".to_owned(), results.json()),
        (plot::RATIOS.to_owned(), plot::ratios(results)),
    ];
    let curves = results.curves().into_iter();
    files.extend(curves.map(|curve| (plot::file(curve), plot::curve(results, curve))));
    files
}

fn measured(results: &Results) -> String {
    let mut text = conditions(results);
    let _ = write!(
        text,
        "\n### The rows\n\n![each way as a multiple of {PEER}](performance/{})\n\n{}",
        plot::RATIOS,
        table(results)
    );
    if !results.curves().is_empty() {
        text.push_str("\n### How cost grows\n");
    }
    for curve in results.curves() {
        let _ = write!(
            text,
            "\n![{curve}](performance/{})\n\n{}",
            plot::file(curve),
            points(results, curve)
        );
    }
    text
}

/// On what, with what.
fn conditions(results: &Results) -> String {
    let about = results.about();
    let said = |name: &str| about[name].as_str().unwrap_or("?");
    let mut text = format!(
        "{}; congestion control {}; load before the start {}. Runs: {}, of {} s each. Fixed rate: \
         {:.0} requests/s, half of the most of {}.\n",
        machine::text(about),
        said("congestion_control"),
        said("load_before"),
        about["reps"],
        about["seconds"],
        about["rate"].as_f64().unwrap_or_default(),
        said("rate_of"),
    );
    if about["reps"].as_u64().is_none_or(|reps| reps < ENOUGH) {
        text.push_str("\n**So few runs show that it works, and not how fast it is.**\n\n");
    }
    let versions = about["versions"].as_object().into_iter().flatten();
    for (name, version) in versions {
        let _ = writeln!(text, "- {name}: `{}`", version.as_str().unwrap_or("?"));
    }
    text
}

fn table(results: &Results) -> String {
    let ways = ways(results);
    let others = || ways.iter().copied().filter(|way| *way != MESH);
    let mut text = "| median (least – most) |".to_owned();
    for way in &ways {
        let _ = write!(text, " {way} |");
    }
    for way in others() {
        let _ = write!(text, " × {way} |");
    }
    text.push_str(" goal | reached |\n|---|");
    text.push_str(&"---|".repeat(2 * ways.len() + 1));
    text.push('\n');
    for row in results.rows() {
        let _ = write!(text, "| {row} |");
        for way in &ways {
            let cell = results.spread(row, way).map_or("–".to_owned(), shown);
            let _ = write!(text, " {cell} |");
        }
        for way in others() {
            let ratio = goals::ratio(results, row, way);
            let ratio = ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = write!(text, " {ratio} |");
        }
        let goal = goals::of(row);
        let reached = match goal.map(|goal| goal.is_reached(results, row)) {
            None => "",
            Some(None) => "not measured",
            Some(Some(true)) => "yes",
            Some(Some(false)) => "**no**",
        };
        let goal = goal.map(goals::Goal::text).unwrap_or_default();
        let _ = writeln!(text, " {goal} | {reached} |");
    }
    text
}

/// The points of a curve: a line a way.
fn points(results: &Results, curve: &str) -> String {
    let of = |way: &str| results.points(curve, way);
    let mut at: Vec<f64> = ALL
        .iter()
        .flat_map(|[way, _]| of(way))
        .map(|p| p.0)
        .collect();
    at.sort_by(f64::total_cmp);
    at.dedup();
    let mut text = format!("| {curve} |");
    for x in &at {
        let _ = write!(text, " {} |", plot::tick(*x));
    }
    let _ = write!(text, "\n|---|{}\n", "---|".repeat(at.len()));
    for [way, _] in ALL {
        let points = of(way);
        if points.is_empty() {
            continue;
        }
        let _ = write!(text, "| {way} |");
        for x in &at {
            let point = points.iter().find(|point| point.0 == *x);
            let shown = point.map_or("–".to_owned(), |point| number(point.1.median));
            let _ = write!(text, " {shown} |");
        }
        text.push('\n');
    }
    text
}

/// For people who watch it run.
pub(crate) fn text(results: &Results) -> String {
    let ways = ways(results);
    let mut text = format!("{:44}", "medians");
    for way in &ways {
        let _ = write!(text, "{way:>14}");
    }
    let _ = write!(text, "{:>12}   goal", format!("× {PEER}"));
    for row in results.rows() {
        let _ = write!(text, "\n{row:44}");
        for way in &ways {
            let median = results.spread(row, way).map(|s| number(s.median));
            let _ = write!(text, "{:>14}", median.unwrap_or("–".to_owned()));
        }
        let ratio = goals::ratio(results, row, PEER).map(|ratio| format!("{ratio:.2}"));
        let _ = write!(text, "{:>12}", ratio.unwrap_or("–".to_owned()));
        if let Some(goal) = goals::of(row) {
            let reached = match goal.is_reached(results, row) {
                Some(true) => "yes",
                Some(false) => "no",
                None => "not measured",
            };
            let _ = write!(text, "   {}: {reached}", goal.text());
        }
    }
    for curve in results.curves() {
        let _ = write!(text, "\n\n{}", points(results, curve).trim_end());
    }
    text
}

/// As `5.94 (5.71 – 6.02)`.
fn shown(spread: Spread) -> String {
    let [median, least, most] = [spread.median, spread.least, spread.most].map(number);
    if least == most {
        return median;
    }
    format!("{median} ({least} – {most})")
}

/// Three digits, or all before the point.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_was_measured() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let document = std::fs::read_to_string(docs.join("PERFORMANCE.md")).unwrap();
        let folder = docs.join("performance");
        let results = Results::read(&folder.join("bench.json")).unwrap();
        marks::assert_unchanged(
            &document,
            &measured(&results),
            &folder,
            &files(&results),
            "cargo xtask bench --render docs/performance/bench.json",
        );
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [54_321.6, 123.4, 12.34, 1.234, 0.0].map(number);
        assert_eq!(shown, ["54322", "123", "12.3", "1.23", "0"]);
    }
}
