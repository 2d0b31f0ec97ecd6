//! The table: medians, and the mesh as a ratio to each other way.

use std::collections::BTreeMap;

use serde_json::json;

use super::ways::Way;

/// All results.
pub(crate) struct Table {
    ways: Vec<&'static str>,
    rows: Vec<&'static str>,
    values: BTreeMap<(&'static str, &'static str), Vec<f64>>,
}

impl Table {
    pub(crate) fn new(ways: &[Way<'_>]) -> Self {
        Self {
            ways: ways.iter().map(|way| way.name).collect(),
            rows: Vec::new(),
            values: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, way: &Way<'_>, results: Vec<(&'static str, f64)>) {
        for (row, value) in results {
            if !self.rows.contains(&row) {
                self.rows.push(row);
            }
            self.values.entry((row, way.name)).or_default().push(value);
        }
    }

    fn median(&self, row: &'static str, way: &'static str) -> Option<f64> {
        let mut values = self.values.get(&(row, way))?.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        Some(if values.len() % 2 == 0 {
            f64::midpoint(values[middle - 1], upper)
        } else {
            upper
        })
    }

    /// The mesh's value as a multiple of another way's.
    fn ratio(&self, row: &'static str, way: &'static str) -> Option<f64> {
        let mesh = self.median(row, super::MESH)?;
        self.median(row, way).filter(|v| *v > 0.0).map(|v| mesh / v)
    }

    fn others(&self) -> impl Iterator<Item = &'static str> {
        self.ways.iter().copied().filter(|way| *way != super::MESH)
    }

    /// For people.
    pub(crate) fn text(&self, reps: usize, seconds: u32) -> String {
        let mut text = format!(
            "medians of {reps} interleaved runs of {seconds} s\n\n{:42}",
            ""
        );
        for way in &self.ways {
            text.push_str(&format!("{way:>14}"));
        }
        for way in self.others() {
            text.push_str(&format!("{:>16}", format!("× {way}")));
        }
        for row in &self.rows {
            text.push_str(&format!("\n{row:42}"));
            for way in &self.ways {
                let value = self.median(row, way).map_or("–".to_owned(), shown);
                text.push_str(&format!("{value:>14}"));
            }
            for way in self.others() {
                let ratio = self.ratio(row, way);
                let ratio = ratio.map_or("–".to_owned(), |r| format!("{r:.2}"));
                text.push_str(&format!("{ratio:>16}"));
            }
        }
        text
    }

    /// For programs: every run's value.
    pub(crate) fn json(&self, reps: usize, seconds: u32) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let ways: BTreeMap<_, _> = self
                    .ways
                    .iter()
                    .filter_map(|way| {
                        let runs = self.values.get(&(*row, *way))?;
                        let cell = json!({ "median": self.median(row, way), "runs": runs });
                        Some((*way, cell))
                    })
                    .collect();
                json!({ "measure": row, "ways": ways })
            })
            .collect();
        let all = json!({ "reps": reps, "seconds": seconds, "rows": rows });
        format!("{all:#}\n")
    }
}

fn shown(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
