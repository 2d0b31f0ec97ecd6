//! The plots: each way beside the peer, and how cost grows.

use std::fmt::Write;

use super::goals::{GOALS, Goal};
use super::results::Results;
use super::svg;
use super::ways::{ALL, PEER};

/// The file of [`ratios`].
pub(crate) const RATIOS: &str = "ratios.svg";

const LEFT: f64 = 270.0;
const WIDTH: f64 = 520.0;
const ROW: f64 = 26.0;
const TOP: f64 = 62.0;
/// The scale's ends: what is beyond is drawn at the end.
const SCALE: [f64; 2] = [0.05, 20.0];

/// A line a row that has a ratio for a goal, a mark a way, and where the goal is.
pub(crate) fn ratios(results: &Results) -> String {
    let rows: Vec<(&str, Goal)> = GOALS
        .iter()
        .copied()
        .filter(|(row, goal)| !matches!(goal, Goal::Most(_)) && results.spread(row, PEER).is_some())
        .collect();
    let bottom = TOP + ROW * rows.len() as f64;
    let title = format!("Each way as a multiple of {PEER}; green: the goal");
    let mut svg = svg::begin(LEFT + WIDTH + 30.0, bottom + 40.0, &title);
    let others = ALL.into_iter().filter(|[way, _]| *way != PEER);
    svg::legend(&mut svg, others.clone());
    let x = |ratio: f64| LEFT + along(ratio, SCALE) * WIDTH;
    for tick in [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0] {
        let _ = writeln!(
            svg,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\">{tick}×</text>",
            x(tick),
            bottom + 18.0
        );
    }
    for (index, (row, goal)) in rows.iter().enumerate() {
        let middle = TOP + ROW * (index as f64 + 0.5);
        let (from, to) = match goal {
            Goal::TimesAtLeast(goal) => (*goal, SCALE[1]),
            Goal::TimesAtMost(goal) | Goal::Most(goal) => (SCALE[0], *goal),
        };
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"#e6f4ea\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{row}</text>",
            x(from),
            middle - ROW / 2.0 + 2.0,
            x(to) - x(from),
            ROW - 4.0,
            LEFT - 8.0,
            middle + 4.0
        );
        let peer = results.spread(row, PEER).map_or(0.0, |s| s.median);
        for [way, colour] in others.clone() {
            if let Some(spread) = results.spread(row, way) {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{middle}\" r=\"4\" fill=\"{colour}\"/>",
                    x(spread.median / peer)
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where a value is on a logarithmic scale, from 0 to 1.
fn along(value: f64, [least, most]: [f64; 2]) -> f64 {
    (value.clamp(least, most) / least).ln() / (most / least).ln()
}

/// The file of a curve's plot.
pub(crate) fn file(curve: &str) -> String {
    let letters = curve.chars().filter_map(|letter| match letter {
        ' ' | '/' => Some('-'),
        'µ' => Some('u'),
        other => other
            .is_ascii_alphanumeric()
            .then(|| other.to_ascii_lowercase()),
    });
    format!("{}.svg", letters.collect::<String>())
}

/// A number below an axis, as short as can be.
pub(crate) fn tick(value: f64) -> String {
    match value {
        v if v >= 1_048_576.0 && v % 1_048_576.0 == 0.0 => format!("{} Mi", v / 1_048_576.0),
        v if v >= 1_024.0 && v % 1_024.0 == 0.0 => format!("{} Ki", v / 1_024.0),
        v if v >= 1_000.0 && v % 1_000.0 == 0.0 => format!("{}k", v / 1_000.0),
        v => format!("{v}"),
    }
}

/// A line a way: the points at equal distances, the values on a logarithmic scale.
pub(crate) fn curve(results: &Results, name: &str) -> String {
    const HEIGHT: f64 = 220.0;
    const SIDE: f64 = 70.0;
    const STEP: f64 = 110.0;
    let of = |way: &str| results.points(name, way);
    let all: Vec<(f64, f64)> = ALL
        .iter()
        .flat_map(|[way, _]| of(way))
        .map(|(at, spread)| (at, spread.median))
        .collect();
    let mut at: Vec<f64> = all.iter().map(|point| point.0).collect();
    at.sort_by(f64::total_cmp);
    at.dedup();
    let values = all.iter().map(|point| point.1).filter(|v| *v > 0.0);
    let least = values.clone().fold(f64::MAX, f64::min);
    let most = values.fold(f64::MIN_POSITIVE, f64::max);
    let decades = [
        10f64.powf(least.log10().floor()),
        10f64.powf(most.log10().ceil()),
    ];
    let x = |value: f64| {
        let index = at.iter().position(|v| *v == value).unwrap_or_default();
        SIDE + STEP * (index as f64 + 0.3)
    };
    let y = |value: f64| TOP + HEIGHT * (1.0 - along(value, decades));
    let width = SIDE + STEP * (at.len() as f64).max(4.0);
    let mut svg = svg::begin(width, TOP + HEIGHT + 40.0, name);
    svg::legend(
        &mut svg,
        ALL.into_iter().filter(|[way, _]| !of(way).is_empty()),
    );
    let mut decade = decades[0];
    while decade <= decades[1] * 1.001 {
        let _ = writeln!(
            svg,
            "<line x1=\"{SIDE}\" x2=\"{width}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{decade}</text>",
            y(decade),
            SIDE - 6.0,
            y(decade) + 4.0
        );
        decade *= 10.0;
    }
    for value in &at {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(*value),
            TOP + HEIGHT + 18.0,
            tick(*value)
        );
    }
    for [way, colour] in ALL {
        let points: Vec<(f64, f64)> = of(way)
            .iter()
            .map(|(at, spread)| (x(*at), y(spread.median)))
            .collect();
        if !points.is_empty() {
            svg::line(&mut svg, &points, colour);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_plain_names_and_ticks_are_short() {
        assert_eq!(file("requests/s by µs"), "requests-s-by-us.svg");
        let ticks = [64.0, 4_096.0, 10_000.0, 1_048_576.0].map(tick);
        assert_eq!(ticks, ["64", "4 Ki", "10k", "1 Mi"]);
    }
}
