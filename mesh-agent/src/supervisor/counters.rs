//! A pod's counters over the lives of its workers.

use std::collections::BTreeMap;

use mesh_api::worker::Counter;

/// Most series one worker may report: a seized one shall not fill the supervisor's memory.
const MAX_SERIES: usize = 1_024;

/// Names that are the supervisor's to count: a worker says nothing of them.
const OWN: &str = "nodemesh_supervisor_";

type Series = (String, String);

/// Sums of the workers that have ended, and what those that are there said last.
#[derive(Debug, Default)]
pub(super) struct Counters {
    ended: BTreeMap<Series, u64>,
    /// What the supervisor itself counts of the pod.
    own: BTreeMap<Series, u64>,
    /// By process id: while one worker replaces another there are two.
    present: BTreeMap<i32, BTreeMap<Series, u64>>,
}

fn is_counter(name: &str) -> bool {
    name.ends_with("_total")
}

/// Points in time, of which the first counts; all else is added up.
fn is_time(name: &str) -> bool {
    name.ends_with("_seconds")
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

    /// One worker's counters.
    pub(super) fn update(&mut self, pid: i32, counters: &[Counter]) {
        let taken = counters
            .iter()
            .filter(|c| is_well_formed(c))
            .take(MAX_SERIES);
        let taken = taken.map(|c| ((c.name.clone(), c.label.clone()), c.value));
        self.present.insert(pid, taken.collect());
    }

    /// Connections that one worker had open when it was asked last.
    pub(super) fn open_connections(&self, pid: i32) -> u64 {
        let open = |series: &Series| series.0 == "nodemesh_connections_open";
        let series = self.present.get(&pid).into_iter().flatten();
        series
            .filter(|(s, _)| open(s))
            .map(|(_, value)| value)
            .sum()
    }

    /// A worker has ended: its counts stay, its gauges are gone.
    pub(super) fn worker_ended(&mut self, pid: i32) {
        for (series, value) in self.present.remove(&pid).unwrap_or_default() {
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
        for (series, value) in self.present.values().flatten() {
            let sum = totals.entry(series.clone()).or_default();
            *sum = match is_time(&series.0) && *sum > 0 {
                true => (*sum).min(*value),
                false => sum.saturating_add(*value),
            };
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
        counters.update(1, &[counter(name, 1_000)]);
        counters.worker_ended(1);
        counters.update(1, &[counter(name, 1_000)]);
        assert_eq!(counters.totals(), [counter(name, 2)]);
    }

    #[test]
    fn counts_go_on_over_a_restart_and_gauges_start_anew() {
        let mut counters = Counters::default();
        counters.update(
            1,
            &[counter("nodemesh_a_total", 5), counter("nodemesh_open", 3)],
        );
        counters.update(
            1,
            &[counter("nodemesh_a_total", 6), counter("nodemesh_open", 2)],
        );
        counters.worker_ended(1);
        counters.update(
            1,
            &[counter("nodemesh_a_total", 1), counter("nodemesh_open", 4)],
        );
        assert_eq!(
            counters.totals(),
            [counter("nodemesh_a_total", 7), counter("nodemesh_open", 4)]
        );
    }

    #[test]
    fn two_workers_of_a_pod_are_one_sum_that_never_falls() {
        let mut counters = Counters::default();
        let (total, open, until) = (
            "nodemesh_a_total",
            "nodemesh_connections_open",
            "nodemesh_b_seconds",
        );
        counters.update(
            1,
            &[counter(total, 5), counter(open, 3), counter(until, 70)],
        );
        counters.update(
            2,
            &[counter(total, 1), counter(open, 1), counter(until, 90)],
        );
        let totals = [counter(total, 6), counter(until, 70), counter(open, 4)];
        assert_eq!(counters.totals(), totals);
        assert_eq!(
            (counters.open_connections(1), counters.open_connections(9)),
            (3, 0)
        );
        counters.worker_ended(1);
        let totals = [counter(total, 6), counter(until, 90), counter(open, 1)];
        assert_eq!(counters.totals(), totals);
    }

    #[test]
    fn what_would_break_the_text_is_left_out() {
        let mut counters = Counters::default();
        counters.update(
            1,
            &[
                counter("nodemesh_a{x=\"\"}", 1),
                counter("other_total", 1),
                Counter {
                    label: "a\"\nb".to_owned(),
                    ..counter("nodemesh_a_total", 1)
                },
            ],
        );
        assert!(counters.totals().is_empty());
    }
}
