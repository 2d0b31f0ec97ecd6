//! How the cases that press on the processor depend on the victim's rate: a table and a plot.

use std::fmt::Write;

use super::super::svg;
use super::columns::Kind;
use super::plot::{colour, entry, share};
use super::results::{AIM, Results};

/// Name of the plot's file.
pub(super) const PLOT: &str = "p99-sweep.svg";

const PANEL: f64 = 165.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 80.0;
const HEIGHT: f64 = 190.0;
/// Space at a panel's sides.
const INSET: f64 = 22.0;

/// Cases that were run at all rates.
fn cases(results: &Results) -> Vec<&str> {
    let swept = |case: &&str| {
        let loads = results.sweep().into_iter();
        let mut cells = loads.map(|load| results.cell(case, Kind::Nodemesh, load));
        cells.all(|cell| cell.is_some())
    };
    results.cases().into_iter().filter(swept).collect()
}

pub(super) fn section(results: &Results) -> String {
    let loads = results.sweep();
    let mut text = format!(
        "\n### At other rates of the victim\n\n\
         p99 as a multiple of that alone at the same rate, least – most, and errors; of *alone* \
         in µs.\n\n![p99 by the victim's rate](isolation/{PLOT})\n\n| aggressor | column |"
    );
    for load in &loads {
        let _ = write!(text, " at {load} % |");
    }
    text.push_str("\n|---|---|");
    text.push_str(&"---|".repeat(loads.len()));
    text.push('\n');
    for case in cases(results) {
        for kind in results.columns() {
            let cells: Vec<String> = loads
                .iter()
                .filter_map(|load| cell(results, case, kind, *load))
                .collect();
            if cells.len() == loads.len() {
                let _ = writeln!(text, "| {case} | {} | {} |", kind.name(), cells.join(" | "));
            }
        }
    }
    text
}

fn cell(results: &Results, case: &str, kind: Kind, load: f64) -> Option<String> {
    let cell = results.cell(case, kind, load)?;
    if case == "alone" {
        return Some(format!("{:.0} µs", cell.spread("p99_us")?.median));
    }
    let errors = match cell.errors() {
        0 => String::new(),
        some => format!(", {some} errors"),
    };
    Some(format!("{}{errors}", cell.p99_ratio()?.text()))
}

/// A panel a case, a line a column.
pub(super) fn svg(results: &Results) -> String {
    let cases: Vec<&str> = cases(results)
        .into_iter()
        .filter(|case| *case != "alone")
        .collect();
    let loads = results.sweep();
    let (width, height) = (
        LEFT + PANEL * cases.len() as f64 + 10.0,
        TOP + HEIGHT + 45.0,
    );
    let title = "Victim's p99 as a multiple of its p99 alone, by its rate in percent of its most";
    let mut svg = svg::begin(width, height, title);
    svg::legend(&mut svg, results.columns().into_iter().map(entry));
    for tick in [1.0, 2.0, 5.0, 10.0, 100.0, 1_000.0] {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick}×</text>",
            LEFT - 6.0,
            y(tick) + 4.0
        );
    }
    for (index, case) in cases.iter().enumerate() {
        panel(&mut svg, results, case, &loads, LEFT + PANEL * index as f64);
    }
    svg.push_str("</svg>\n");
    svg
}

fn y(ratio: f64) -> f64 {
    TOP + HEIGHT * (1.0 - share(ratio))
}

fn panel(svg: &mut String, results: &Results, case: &str, loads: &[f64], left: f64) {
    let inner = PANEL - 10.0;
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{TOP}\" width=\"{inner}\" height=\"{HEIGHT}\" fill=\"none\" \
         stroke=\"#ddd\"/>\n\
         <rect x=\"{left}\" y=\"{:.1}\" width=\"{inner}\" height=\"{:.1}\" fill=\"#e6f4ea\"/>\n\
         <text x=\"{left}\" y=\"{}\" font-size=\"11\">{case}</text>",
        y(AIM),
        TOP + HEIGHT - y(AIM),
        TOP - 8.0
    );
    let step = (inner - 2.0 * INSET) / (loads.len() as f64 - 1.0);
    let at = |index: usize| left + INSET + step * index as f64;
    for (index, load) in loads.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{load} %</text>",
            at(index),
            TOP + HEIGHT + 18.0
        );
    }
    for kind in results.columns() {
        let points = loads.iter().enumerate().filter_map(|(index, load)| {
            let ratio = results.cell(case, kind, *load)?.p99_ratio()?;
            Some((at(index), y(ratio.median)))
        });
        let points: Vec<(f64, f64)> = points.collect();
        svg::line(svg, &points, colour(kind));
    }
}
