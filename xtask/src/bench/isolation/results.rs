//! What was measured, as it is written and read again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::aggressor::Measured;
use serde_json::{Value, json};

use super::super::spread::Spread;
use super::cases::{Aggression, THROUGHOUT};
use super::columns::Kind;
use super::schedule::Step;

/// The aim: p99 within this multiple of that alone, and no error.
pub(super) const AIM: f64 = 1.25;

/// One run of a case.
pub(super) struct Run {
    pub(super) seen: Measured,
    /// Answers in the time that counts, as a share of the requests that were due in it.
    pub(super) goodput: f64,
    pub(super) aggression: Option<Aggression>,
    /// When the aggressor was to end, from the victim's start.
    pub(super) end: Duration,
}

/// All of it. Rows are objects as in the file.
pub(super) struct Results {
    about: Value,
    rows: Vec<Value>,
}

/// The rows of one case in one column, at one rate.
pub(super) struct Cell<'a> {
    rows: Vec<&'a Value>,
    alone_p99_us: f64,
}

impl Results {
    pub(super) fn new(about: Value) -> Self {
        Self {
            about,
            rows: Vec::new(),
        }
    }

    pub(super) fn rate(&mut self, kind: Kind, per_second: f64) {
        self.about["most_requests_per_second"][kind.name()] = json!(per_second.round());
    }

    pub(super) fn add(&mut self, step: &Step, run: Run) {
        let seen = &run.seen;
        let window = Duration::from_millis(100);
        let after = usize::try_from(run.end.as_millis() / window.as_millis()).unwrap_or_default();
        let after = seen.course_us.get(after..).unwrap_or_default();
        let aggression = run.aggression.map(|a| {
            json!({ "done": a.done, "refused": a.refused, "unit": a.unit, "seconds": a.seconds })
        });
        self.rows.push(json!({
            "case": step.case.name(), "column": step.kind.name(), "load_percent": step.load,
            "p50_us": seen.p50_us, "p99_us": seen.p99_us, "p999_us": seen.p999_us,
            "asked": seen.asked, "errors": seen.errors, "last_error": seen.last_error,
            "goodput": run.goodput,
            "p99_us_by_100ms_after": after,
            "aggression": aggression,
        }));
    }

    pub(super) fn json(&self) -> String {
        format!("{:#}\n", json!({ "about": self.about, "runs": self.rows }))
    }

    pub(super) fn read(file: &Path) -> Result<Self> {
        let what = || format!("reading {}", file.display());
        let text = fs::read_to_string(file).with_context(what)?;
        let mut all: Value = serde_json::from_str(&text).with_context(what)?;
        let rows = all["runs"].as_array().cloned();
        Ok(Self {
            rows: rows.with_context(|| format!("{} has no `runs`", file.display()))?,
            about: all["about"].take(),
        })
    }

    pub(super) fn about(&self) -> &Value {
        &self.about
    }

    /// The rates at which all cases were run, in percent of the victim's most.
    pub(super) fn loads(&self) -> Vec<f64> {
        numbers(&self.about["loads"])
    }

    /// All rates at which some cases were run, in rising order; none if there was no sweep.
    pub(super) fn sweep(&self) -> Vec<f64> {
        let mut all = numbers(&self.about["sweep"]);
        if !all.is_empty() {
            all.extend(self.loads());
        }
        all.sort_by(f64::total_cmp);
        all
    }

    /// The columns that were measured.
    pub(super) fn columns(&self) -> Vec<Kind> {
        let most = &self.about["most_requests_per_second"];
        let all = Kind::ALL.into_iter();
        all.filter(|kind| most[kind.name()].is_number()).collect()
    }

    /// Names of the cases, in the order they were measured.
    pub(super) fn cases(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.rows.iter().filter_map(|row| row["case"].as_str()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// None if it was not measured.
    pub(super) fn cell(&self, case: &str, column: Kind, load: f64) -> Option<Cell<'_>> {
        let of = |case: &str| -> Vec<&Value> {
            let rows = self.rows.iter();
            rows.filter(|row| {
                row["case"] == case && row["column"] == column.name() && row["load_percent"] == load
            })
            .collect()
        };
        let alone: Vec<f64> = of("alone")
            .iter()
            .filter_map(|r| r["p99_us"].as_f64())
            .collect();
        let rows = of(case);
        let alone_p99_us = Spread::of(&alone)?.median;
        (!rows.is_empty()).then_some(Cell { rows, alone_p99_us })
    }
}

impl Cell<'_> {
    pub(super) fn spread(&self, field: &str) -> Option<Spread> {
        let values: Vec<f64> = self
            .rows
            .iter()
            .filter_map(|row| row[field].as_f64())
            .collect();
        Spread::of(&values)
    }

    /// Of each run to the median of those alone.
    pub(super) fn p99_ratio(&self) -> Option<Spread> {
        let of = |value: f64| value / self.alone_p99_us.max(1.0);
        let s = self.spread("p99_us")?;
        Some(Spread {
            median: of(s.median),
            least: of(s.least),
            most: of(s.most),
        })
    }

    /// Whether it is within the aim.
    pub(super) fn is_good(&self) -> bool {
        let near = |ratio: Spread| ratio.median <= AIM;
        self.errors() == 0 && self.p99_ratio().is_some_and(near)
    }

    /// In all runs.
    pub(super) fn errors(&self) -> u64 {
        self.rows
            .iter()
            .filter_map(|row| row["errors"].as_u64())
            .sum()
    }

    /// Milliseconds from the aggressor's end until the victim's p99 was below twice that alone,
    /// and stayed there, in the worst run; by windows of 100 ms.
    pub(super) fn recovery_ms(&self) -> usize {
        let of = |row: &&Value| {
            let after = row["p99_us_by_100ms_after"].as_array()?;
            let slow = |us: &Value| us.as_f64().is_some_and(|us| us > 2.0 * self.alone_p99_us);
            after.iter().rposition(slow).map(|at| (at + 1) * 100)
        };
        self.rows.iter().filter_map(of).max().unwrap_or_default()
    }

    /// What the aggressor has done and was refused, by the second; median run.
    pub(super) fn achieved(&self) -> String {
        let mut by_unit: BTreeMap<&str, [Vec<f64>; 2]> = BTreeMap::new();
        for row in &self.rows {
            let did = &row["aggression"];
            let (Some(unit), Some(seconds)) = (did["unit"].as_str(), did["seconds"].as_f64())
            else {
                continue;
            };
            let [done, refused] = by_unit.entry(unit).or_default();
            let of = |name: &str| did[name].as_f64().unwrap_or_default() / seconds;
            done.push(of("done"));
            refused.push(of("refused"));
        }
        let told = by_unit.iter().map(|(unit, [done, refused])| {
            let median = |v: &[f64]| Spread::of(v).map_or(0.0, |s| s.median);
            if *unit == THROUGHOUT {
                return THROUGHOUT.to_owned();
            }
            let refused = match median(refused) {
                0.0 => String::new(),
                often => format!(", {} refused", short(often)),
            };
            format!("{} {unit}{refused}", short(median(done)))
        });
        told.collect()
    }
}

fn numbers(of: &Value) -> Vec<f64> {
    let all = of.as_array().into_iter().flatten();
    all.filter_map(Value::as_f64).collect()
}

/// A number in three digits.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.1} G", v / 1e9),
        v if v >= 1e6 => format!("{:.1} M", v / 1e6),
        v if v >= 1e4 => format!("{:.0} k", v / 1e3),
        v if v >= 1e3 => format!("{:.1} k", v / 1e3),
        v if v >= 10.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, p99_us: u64, after: &[u64]) -> Value {
        json!({
            "case": case, "column": "Nodemesh", "load_percent": 30.0, "p99_us": p99_us,
            "errors": 1, "p99_us_by_100ms_after": after,
        })
    }

    #[test]
    fn ratios_are_to_the_median_alone() {
        let results = Results {
            about: Value::Null,
            rows: vec![
                row("alone", 100, &[]),
                row("alone", 300, &[]),
                row("alone", 200, &[]),
                row("churn", 400, &[900, 100, 500, 100]),
                row("churn", 250, &[100]),
                row("churn", 200, &[]),
            ],
        };
        let cell = results.cell("churn", Kind::Nodemesh, 30.0).unwrap();
        let ratio = cell.p99_ratio().unwrap();
        assert_eq!([ratio.least, ratio.median, ratio.most], [1.0, 1.25, 2.0]);
        assert_eq!((cell.errors(), cell.recovery_ms()), (3, 300));
        assert!(results.cell("churn", Kind::SharedProxy, 30.0).is_none());
    }
}
