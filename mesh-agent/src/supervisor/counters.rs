//! A pod's counters over the lives of its workers.

use std::collections::BTreeMap;

use mesh_api::worker::Counter;

/// Most series one worker may report: a seized one shall not fill the supervisor's memory.
const MAX_SERIES: usize = 1_024;

/// Names that are the supervisor's to count: a worker says nothing of them.
const OWN: &str = "nodemesh_supervisor_";

type Series = (String, String);

/// Sums of the workers that have ended, and what the present one said last.
#[derive(Debug, Default)]
pub(super) struct Counters {
    ended: BTreeMap<Series, u64>,
    /// What the supervisor itself counts of the pod.
    own: BTreeMap<Series, u64>,
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
    counter.name.starts_with("nodemesh_")
        && !counter.name.starts_with(OWN)
        && word(&counter.name)
        && word(&counter.label)
}

impl Counters {
    /// Counts one more of what the supervisor sees of the pod's workers.
    pub(super) fn count(&mut self, name: &str, label: &str) {
        debug_assert!(name.starts_with(OWN));
        *self
            .own
            .entry((name.to_owned(), label.to_owned()))
            .or_default() += 1;
    }

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
        totals.extend(self.own.clone());
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
    fn what_the_supervisor_counts_is_not_the_workers_to_say() {
        let mut counters = Counters::default();
        let name = "nodemesh_supervisor_messages_total";
        counters.count(name, "outbound");
        counters.count(name, "outbound");
        counters.update(&[counter(name, 1_000)]);
        counters.worker_ended();
        counters.update(&[counter(name, 1_000)]);
        assert_eq!(counters.totals(), [counter(name, 2)]);
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
