//! A plot: one line an aggressor, one mark a column, p99 as a multiple of that alone.

use std::fmt::Write;

use super::super::svg;
use super::columns::Kind;
use super::results::{AIM, Results};

const LEFT: f64 = 230.0;
const WIDTH: f64 = 560.0;
const ROW: f64 = 28.0;
const TOP: f64 = 66.0;
/// The scale's ends: what is beyond is drawn at the end.
const SCALE: (f64, f64) = (0.5, 1_000.0);

pub(super) fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Nothing => "#8a8f98",
        Kind::Nodemesh => "#1f6feb",
        Kind::SharedProxy => "#d9480f",
        Kind::Ztunnel => "#2b8a3e",
    }
}

/// Where a ratio is on the scale, from 0 to 1.
pub(super) fn share(ratio: f64) -> f64 {
    (ratio.clamp(SCALE.0, SCALE.1) / SCALE.0).log10() / (SCALE.1 / SCALE.0).log10()
}

fn x(ratio: f64) -> f64 {
    LEFT + share(ratio) * WIDTH
}

/// The plot as SVG.
pub(super) fn svg(results: &Results, load: f64) -> String {
    let cases: Vec<&str> = results
        .cases()
        .into_iter()
        .filter(|c| *c != "alone")
        .collect();
    let bottom = TOP + ROW * cases.len() as f64;
    let (width, height) = (LEFT + WIDTH + 30.0, bottom + 40.0);
    let title = format!(
        "Victim's p99 beside each aggressor, as a multiple of its p99 alone ({load} % load)"
    );
    let mut svg = svg::begin(width, height, &title);
    let columns = results.columns();
    svg::legend(&mut svg, columns.iter().copied().map(entry));
    let _ = writeln!(
        svg,
        "<text x=\"520\" y=\"42\">bar: least to most; ✕: requests failed</text>\n\
         <rect x=\"{}\" y=\"{TOP}\" width=\"{}\" height=\"{}\" fill=\"#e6f4ea\"/>",
        LEFT,
        x(AIM) - LEFT,
        bottom - TOP
    );
    for tick in [0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1_000.0] {
        let _ = writeln!(
            svg,
            "<line x1=\"{0}\" x2=\"{0}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{0}\" y=\"{1}\" text-anchor=\"middle\">{tick}×</text>",
            x(tick),
            bottom + 18.0
        );
    }
    for (index, case) in cases.iter().enumerate() {
        let middle = TOP + ROW * (index as f64 + 0.5);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{case}</text>",
            LEFT - 8.0,
            middle + 4.0
        );
        for (place, kind) in columns.iter().copied().enumerate() {
            let cell = results.cell(case, kind, load);
            if let Some((cell, ratio)) = cell.and_then(|c| c.p99_ratio().map(|r| (c, r))) {
                mark(
                    &mut svg,
                    kind,
                    middle + 6.0 * (place as f64 - (columns.len() as f64 - 1.0) / 2.0),
                    [ratio.least, ratio.median, ratio.most],
                    cell.errors(),
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// What the legend says of a column.
pub(super) fn entry(kind: Kind) -> [&'static str; 2] {
    [kind.name(), colour(kind)]
}

fn mark(svg: &mut String, kind: Kind, y: f64, [least, median, most]: [f64; 3], errors: u64) {
    let colour = colour(kind);
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        x(least),
        x(most)
    );
    let at = x(median);
    let _ = match errors {
        0 => writeln!(
            svg,
            "<circle cx=\"{at:.1}\" cy=\"{y}\" r=\"3.5\" fill=\"{colour}\"/>"
        ),
        _ => writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" font-size=\"13\" \
             font-weight=\"bold\" fill=\"{colour}\">✕</text>",
            y + 4.5
        ),
    };
}
