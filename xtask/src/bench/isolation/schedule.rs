//! What is run in which order, and how long it takes.

use std::time::Duration;

use super::cases::Case;
use super::columns::Kind;

/// What a run takes beside its [`Times`]: programs start and end, and both tenants have to be
/// served again.
const BESIDE: Duration = Duration::from_millis(400);

/// The parts of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// The aggressor is at work before the victim's requests count.
    pub(super) lead: Duration,
    /// They count.
    pub(super) measured: Duration,
    /// The aggressor has ended, and the victim goes on.
    pub(super) after: Duration,
}

impl Times {
    /// Shows that all of it works.
    pub(super) const SHORT: Self = Self {
        lead: Duration::from_millis(200),
        measured: Duration::from_millis(500),
        after: Duration::from_millis(200),
    };

    /// For so much time that counts.
    pub(super) fn of(measured: Duration) -> Self {
        Self {
            lead: Duration::from_millis(500),
            measured,
            after: Duration::from_millis(1_200),
        }
    }

    pub(super) fn aggression(&self) -> Duration {
        self.lead + self.measured
    }

    /// Where nobody asks how long the victim takes to recover.
    fn without_recovery(self) -> Self {
        Self {
            after: Self::SHORT.after,
            ..self
        }
    }
}

/// One run of a case in a column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// The victim's rate, in percent of its most.
    pub(super) load: f64,
    pub(super) case: Case,
    pub(super) kind: Kind,
    pub(super) times: Times,
}

impl Step {
    pub(super) fn what(&self) -> String {
        let (case, kind) = (self.case.name(), self.kind.name());
        format!("{case}, {kind}, {} %", self.load)
    }
}

/// The steps that are taken in each repetition.
pub(super) struct Schedule {
    pub(super) steps: Vec<Step>,
    /// The rates at which all cases are run, and those of the sweep.
    pub(super) loads: [Vec<f64>; 2],
    pub(super) times: Times,
}

impl Schedule {
    /// All cases at the first of the loads; at the others those only that press on the
    /// processor. Columns in turn within each case.
    pub(super) fn new(
        kinds: &[Kind],
        cases: &[Case],
        [all, sweep]: [&[f64]; 2],
        times: Times,
    ) -> Self {
        let sweep: Vec<f64> = sweep.iter().copied().filter(|l| !all.contains(l)).collect();
        let mut steps = Vec::new();
        let mut add = |load: f64, case: Case, times: Times| {
            let kinds = kinds.iter().filter(|kind| case.concerns(**kind));
            steps.extend(kinds.map(|kind| Step {
                load,
                case,
                kind: *kind,
                times,
            }));
        };
        for load in all {
            cases.iter().for_each(|case| add(*load, *case, times));
        }
        for load in &sweep {
            let pressing = cases.iter().filter(|case| case.presses());
            pressing.for_each(|case| add(*load, *case, times.without_recovery()));
        }
        Self {
            steps,
            loads: [all.to_vec(), sweep],
            times,
        }
    }

    /// About how long so many repetitions take.
    pub(super) fn expected(&self, reps: usize) -> Duration {
        let of = |step: &Step| step.times.aggression() + step.times.after + BESIDE;
        let one: Duration = self.steps.iter().map(of).sum();
        one * u32::try_from(reps).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_default_run_takes_half_an_hour() {
        let times = Times::of(Duration::from_millis(1_500));
        let schedule = Schedule::new(&Kind::ALL, &Case::all(), [&[30.0], &[10.0, 60.0]], times);
        let minutes = schedule.expected(5).as_secs_f64() / 60.0;
        assert!((20.0..32.0).contains(&minutes), "{minutes} min");
    }

    #[test]
    fn every_case_of_the_sweep_has_its_run_alone_at_the_same_load() {
        let times = Times::SHORT;
        let schedule = Schedule::new(&Kind::ALL, &Case::all(), [&[30.0], &[30.0, 60.0]], times);
        assert_eq!(schedule.loads[1], [60.0]);
        for step in &schedule.steps {
            let alone = |s: &&Step| s.case == Case::Alone && s.kind == step.kind;
            let alone = schedule.steps.iter().filter(alone);
            assert_eq!(alone.filter(|s| s.load == step.load).count(), 1, "{step:?}");
        }
    }
}
