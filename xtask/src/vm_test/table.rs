//! The table of kernels and cases.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use mesh_vm_tests::wire::Outcome;

use super::checked::Checked;
use super::run::Done;

/// What became of a topic's cases on one kernel.
#[derive(Clone, Copy, Default)]
struct Counts {
    passed: usize,
    skipped: usize,
    failed: usize,
    took: Duration,
}

/// Outcomes by case, then by kernel.
pub(super) struct Table {
    releases: Vec<String>,
    cases: BTreeMap<String, BTreeMap<String, (Outcome, Duration)>>,
    /// What guests reported, by kernel and key.
    reported: BTreeMap<(String, String), String>,
}

impl Table {
    pub(super) fn new(releases: &[&str], results: &[(String, Done)]) -> Self {
        let mut table = Self {
            releases: releases.iter().map(|&release| release.to_owned()).collect(),
            cases: BTreeMap::new(),
            reported: BTreeMap::new(),
        };
        for (release, done) in results {
            for ended in &done.ended {
                let of_case = table.cases.entry(ended.case.clone()).or_default();
                of_case.insert(release.clone(), (ended.outcome.clone(), ended.took));
            }
            for (key, value) in &done.reported {
                let key = (release.clone(), key.clone());
                table.reported.insert(key, value.clone());
            }
        }
        table
    }

    pub(super) fn failures(&self) -> usize {
        let outcomes = self.cases.values().flat_map(BTreeMap::values);
        outcomes
            .filter(|(outcome, _)| matches!(outcome, Outcome::Failed(_)))
            .count()
    }

    /// Counts by topic, what was skipped and why, what failed.
    pub(super) fn summary(&self) -> String {
        let mut text = String::new();
        for (topic, counts) in self.by_topic() {
            let _ = write!(text, "{topic:<24}");
            for release in &self.releases {
                let Counts {
                    passed,
                    skipped,
                    failed,
                    took,
                } = counts.get(release).copied().unwrap_or_default();
                let _ = write!(text, "  {release}: {passed} passed in {} s", took.as_secs());
                if skipped > 0 {
                    let _ = write!(text, ", {skipped} skipped");
                }
                if failed > 0 {
                    let _ = write!(text, ", {failed} FAILED");
                }
            }
            text.push('\n');
        }
        for (case, outcomes) in &self.cases {
            for (release, (outcome, _)) in outcomes {
                match outcome {
                    Outcome::Passed => {}
                    Outcome::Skipped(why) => {
                        let _ = writeln!(text, "skipped on {release}: {case}: {why}");
                    }
                    Outcome::Failed(_) => {
                        let _ = writeln!(text, "FAILED on {release}: {case}");
                    }
                }
            }
        }
        text
    }

    /// One row a case.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("| case | {} |\n|---|", self.releases.join(" | "));
        text.push_str(&"---|".repeat(self.releases.len()));
        text.push('\n');
        for (case, outcomes) in &self.cases {
            let _ = write!(text, "| {case} |");
            for release in &self.releases {
                let word = match outcomes.get(release).map(|(outcome, _)| outcome) {
                    None => "",
                    Some(Outcome::Passed) => "passed",
                    Some(Outcome::Failed(_)) => "**failed**",
                    Some(Outcome::Skipped(why)) => why,
                };
                let _ = write!(text, " {word} |");
            }
            text.push('\n');
        }
        let said = self.releases.iter().filter_map(|release| {
            let said = self.reported.get(&(release.clone(), "check".to_owned()));
            Some((release.as_str(), said?.as_str()))
        });
        text.push_str(&Checked::new(said).markdown());
        text
    }

    fn by_topic(&self) -> BTreeMap<&str, BTreeMap<String, Counts>> {
        let mut topics: BTreeMap<&str, BTreeMap<String, Counts>> = BTreeMap::new();
        for (case, outcomes) in &self.cases {
            let parts: Vec<&str> = case.splitn(3, "::").collect();
            let topic = match parts[..] {
                [suite, module, _] => &case[..suite.len() + 2 + module.len()],
                [suite, _] => suite,
                _ => case.split('/').next().unwrap_or(case),
            };
            for (release, (outcome, took)) in outcomes {
                let counts = topics.entry(topic).or_default();
                let counts = counts.entry(release.clone()).or_default();
                counts.took += *took;
                match outcome {
                    Outcome::Passed => counts.passed += 1,
                    Outcome::Skipped(_) => counts.skipped += 1,
                    Outcome::Failed(_) => counts.failed += 1,
                }
            }
        }
        topics
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::Ended;
    use super::*;

    fn ended(case: &str, outcome: Outcome) -> Ended {
        Ended {
            case: case.to_owned(),
            outcome,
            took: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_case_is_a_row_and_a_kernel_a_column() {
        let one = Done {
            ended: vec![
                ended("boot/it-does", Outcome::Passed),
                ended("capture::wall::holds", Outcome::Failed("no".to_owned())),
            ],
            ..Done::default()
        };
        let two = Done {
            ended: vec![ended(
                "boot/it-does",
                Outcome::Skipped("no disk".to_owned()),
            )],
            ..Done::default()
        };
        let results = [("6.1".to_owned(), one), ("6.12".to_owned(), two)];
        let table = Table::new(&["6.1", "6.12"], &results);
        assert_eq!(table.failures(), 1);
        let text = table.markdown();
        assert!(text.contains("| case | 6.1 | 6.12 |"), "{text}");
        assert!(
            text.contains("| boot/it-does | passed | no disk |"),
            "{text}"
        );
        assert!(
            text.contains("| capture::wall::holds | **failed** |  |"),
            "{text}"
        );
        let summary = table.summary();
        assert!(summary.contains("capture::wall"), "{summary}");
        assert!(
            summary.contains("skipped on 6.12: boot/it-does: no disk"),
            "{summary}"
        );
        assert!(
            summary.contains("FAILED on 6.1: capture::wall::holds"),
            "{summary}"
        );
    }
}
