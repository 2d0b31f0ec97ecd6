//! Runs cases one after the other, and takes away what they made.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::case::{self, Case, Verdict};
use super::clean_up;
use super::junit::{self, Done, Outcome};
use super::session::Session;

/// All cases, for one reason.
pub(super) fn not_run(why: &str) -> Vec<Done> {
    let not_run = |case: &Case| done(case, Outcome::NotRun(why.to_owned()), Duration::ZERO);
    case::all().map(not_run).collect()
}

fn done(case: &Case, outcome: Outcome, took: Duration) -> Done {
    Done {
        group: case.group,
        name: case.name,
        outcome,
        took,
    }
}

/// Runs the cases in their order, then takes away what they made, whatever became of them.
pub(super) fn run_cases<'a>(
    session: &Session<'_>,
    cases: impl Iterator<Item = &'a Case>,
    wanted: impl Fn(&Case) -> bool,
    keep: bool,
) -> Vec<Done> {
    let mut all = Vec::new();
    let mut missing: Option<&str> = None;
    for case in cases {
        let began = Instant::now();
        let outcome = match missing {
            _ if !wanted(case) => Outcome::NotRun("not asked for".to_owned()),
            Some(missing) => Outcome::NotRun(format!("it stands on what failed: {missing}")),
            None => outcome(|| (case.run)(session)),
        };
        if case.needed && matches!(outcome, Outcome::Failed(_)) {
            missing = Some(case.name);
        }
        tell(&mut all, done(case, outcome, began.elapsed()));
    }
    let began = Instant::now();
    let outcome = match keep {
        true => Outcome::NotRun("--keep was given".to_owned()),
        false => outcome(|| clean_up::run(session).map(|()| Verdict::Passed)),
    };
    let clean_up = Done {
        group: "clean-up",
        name: "what the run has made is taken away",
        outcome,
        took: began.elapsed(),
    };
    tell(&mut all, clean_up);
    all
}

fn tell(all: &mut Vec<Done>, done: Done) {
    println!("{}", junit::line(&done));
    all.push(done);
}

/// A panic fails a case, and not what comes after it.
pub(super) fn outcome(run: impl FnOnce() -> Result<Verdict>) -> Outcome {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(Verdict::Passed)) => Outcome::Passed,
        Ok(Ok(Verdict::NotHere(why))) => Outcome::NotRun(why),
        Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
        Err(_) => Outcome::Failed("the case panicked: a mistake of the test itself".to_owned()),
    }
}
