//! What was measured, as it is written and read again.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::spread::Spread;

/// All of it: every run's value of every row and of every point of a curve.
pub(crate) struct Results {
    about: Value,
    cells: Vec<Cell>,
}

/// The runs of one row, or one point of a curve, by one way.
struct Cell {
    row: String,
    way: String,
    /// Where on the curve.
    at: Option<f64>,
    values: Vec<f64>,
}

impl Results {
    pub(crate) fn new(about: Value) -> Self {
        Self {
            about,
            cells: Vec::new(),
        }
    }

    /// One run's value of a row.
    pub(crate) fn add(&mut self, row: &str, way: &str, value: f64) {
        self.put(row, way, None, value);
    }

    /// One run's value of a point of a curve.
    pub(crate) fn point(&mut self, curve: &str, way: &str, at: f64, value: f64) {
        self.put(curve, way, Some(at), value);
    }

    fn put(&mut self, row: &str, way: &str, at: Option<f64>, value: f64) {
        let mut cells = self.cells.iter_mut();
        let found = cells.find(|c| c.row == row && c.way == way && c.at == at);
        match found {
            Some(cell) => cell.values.push(value),
            None => self.cells.push(Cell {
                row: row.to_owned(),
                way: way.to_owned(),
                at,
                values: vec![value],
            }),
        }
    }

    /// Requests a second of those at a fixed rate: half of the most of that way.
    pub(crate) fn set_rate(&mut self, per_second: f64, of: &str) {
        self.about["rate"] = json!(per_second);
        self.about["rate_of"] = json!(of);
    }

    pub(crate) fn about(&self) -> &Value {
        &self.about
    }

    /// Names of the rows, in the order in which they were measured.
    pub(crate) fn rows(&self) -> Vec<&str> {
        self.names(|cell| cell.at.is_none())
    }

    /// Names of the curves.
    pub(crate) fn curves(&self) -> Vec<&str> {
        self.names(|cell| cell.at.is_some())
    }

    fn names(&self, wanted: impl Fn(&Cell) -> bool) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for cell in self.cells.iter().filter(|cell| wanted(cell)) {
            if !names.contains(&cell.row.as_str()) {
                names.push(&cell.row);
            }
        }
        names
    }

    /// None if it was not measured.
    pub(crate) fn spread(&self, row: &str, way: &str) -> Option<Spread> {
        let mut cells = self.cells.iter();
        let cell = cells.find(|c| c.row == row && c.way == way && c.at.is_none());
        Spread::of(&cell?.values)
    }

    /// The points of a curve by one way, from left to right.
    pub(crate) fn points(&self, curve: &str, way: &str) -> Vec<(f64, Spread)> {
        let cells = self.cells.iter().filter(|c| c.row == curve && c.way == way);
        let mut points: Vec<(f64, Spread)> = cells
            .filter_map(|cell| Some((cell.at?, Spread::of(&cell.values)?)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }

    /// One line a cell.
    pub(crate) fn json(&self) -> String {
        let cells: Vec<String> = self
            .cells
            .iter()
            .map(|c| json!({ "row": c.row, "way": c.way, "at": c.at, "values": c.values }))
            .map(|cell| format!("  {cell}"))
            .collect();
        format!(
            "{{\"about\": {:#},\n\"cells\": [\n{}\n]}}\n",
            self.about,
            cells.join(",\n")
        )
    }

    pub(crate) fn read(file: &Path) -> Result<Self> {
        let what = || format!("reading {}", file.display());
        let text = fs::read_to_string(file).with_context(what)?;
        let mut all: Value = serde_json::from_str(&text).with_context(what)?;
        let cells = all["cells"].as_array().context("no `cells`");
        let cells = cells.with_context(what)?.iter().map(|cell| {
            let text = |name: &str| cell[name].as_str().map(str::to_owned);
            let values = cell["values"].as_array()?.iter().map(Value::as_f64);
            Some(Cell {
                row: text("row")?,
                way: text("way")?,
                at: cell["at"].as_f64(),
                values: values.collect::<Option<_>>()?,
            })
        });
        let cells = cells.collect::<Option<_>>().context("a cell is no cell");
        Ok(Self {
            cells: cells.with_context(what)?,
            about: all["about"].take(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut results = Results::new(json!({ "reps": 2 }));
        results.add("rate", "a way", 1.5);
        results.add("rate", "a way", 2.5);
        results.point("by size", "a way", 64.0, 7.0);
        results.point("by size", "a way", 1.0, 8.0);
        let file = std::env::temp_dir().join(format!("nm-results-{}.json", std::process::id()));
        fs::write(&file, results.json()).unwrap();
        let read = Results::read(&file);
        fs::remove_file(&file).unwrap();
        let read = read.unwrap();
        assert_eq!(read.json(), results.json());
        assert_eq!(
            (read.rows(), read.curves()),
            (vec!["rate"], vec!["by size"])
        );
        assert_eq!(read.spread("rate", "a way").unwrap().median, 2.0);
        let at: Vec<f64> = read
            .points("by size", "a way")
            .iter()
            .map(|p| p.0)
            .collect();
        assert_eq!(at, [1.0, 64.0]);
    }
}
