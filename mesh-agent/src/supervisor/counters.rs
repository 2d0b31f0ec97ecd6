//! A pod's counters over the lives of its workers.

use std::collections::BTreeMap;

use mesh_api::worker::Counter;

/// Most series one worker may report: a seized one shall not fill the supervisor's memory.
const MAX_SERIES: usize = 1_024;

type Series = (String, String);

/// Sums of the workers that have ended, and what the present one said last.
#[derive(Debug, Default)]
pub(super) struct Counters {
    ended: BTreeMap<Series, u64>,
    present: BTreeMap<Series, u64>,
}

fn is_counter(name: &str) -> bool {
    name.ends_with("_total")
}

/// Names and labels become part of a text that others parse.
fn is_well_formed(counter: &Counter) -> bool {
    let word = |text: &str| {
        text.len() <= 100
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    counter.name.starts_with("nodemesh_") && word(&counter.name) && word(&counter.label)
}

impl Counters {
    /// The present worker's counters.
    pub(super) fn update(&mut self, counters: &[Counter]) {
        let taken = counters
            .iter()
            .filter(|c| is_well_formed(c))
            .take(MAX_SERIES);
        self.present = taken
            .map(|c| ((c.name.clone(), c.label.clone()), c.value))
            .collect();
    }

    /// The present worker has ended: its counts stay, its gauges are gone.
    pub(super) fn worker_ended(&mut self) {
        for (series, value) in std::mem::take(&mut self.present) {
            if is_counter(&series.0)
                && (self.ended.len() < MAX_SERIES || self.ended.contains_key(&series))
            {
                let sum = self.ended.entry(series).or_default();
                *sum = sum.saturating_add(value);
            }
        }
    }

    /// Everything, summed.
    pub(super) fn totals(&self) -> Vec<Counter> {
        let mut totals = self.ended.clone();
        for (series, value) in &self.present {
            let sum = totals.entry(series.clone()).or_default();
            *sum = sum.saturating_add(*value);
        }
        let counters =
            totals
                .into_iter()
                .map(|((name, label), value)| Counter { name, label, value });
        counters.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(name: &str, value: u64) -> Counter {
        Counter {
            name: name.to_owned(),
            label: "outbound".to_owned(),
            value,
        }
    }

    #[test]
    fn counts_go_on_over_a_restart_and_gauges_start_anew() {
        let mut counters = Counters::default();
        counters.update(&[counter("nodemesh_a_total", 5), counter("nodemesh_open", 3)]);
        counters.update(&[counter("nodemesh_a_total", 6), counter("nodemesh_open", 2)]);
        counters.worker_ended();
        counters.update(&[counter("nodemesh_a_total", 1), counter("nodemesh_open", 4)]);
        assert_eq!(
            counters.totals(),
            [counter("nodemesh_a_total", 7), counter("nodemesh_open", 4)]
        );
    }

    #[test]
    fn what_would_break_the_text_is_left_out() {
        let mut counters = Counters::default();
        counters.update(&[
            counter("nodemesh_a{x=\"\"}", 1),
            counter("other_total", 1),
            Counter {
                label: "a\"\nb".to_owned(),
                ..counter("nodemesh_a_total", 1)
            },
        ]);
        assert!(counters.totals().is_empty());
    }
}
