//! Checks the checker: a guest that fails, panics or hangs is reported as such, with its
//! console, and the cases after it still run.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_vm_tests::cases;
use mesh_vm_tests::wire::Outcome;

use super::run::{self, Job};

/// Runs the doomed cases where another job would run.
pub(super) fn run(like: &Job<'_>) -> Result<()> {
    eprintln!("checking that failures, panics and hangs of a guest are seen");
    let doomed = cases::doomed().iter();
    let job = Job {
        nodes: 1,
        kernel_args: "",
        disks: false,
        cases: doomed
            .map(|case| (case.name.to_owned(), Duration::from_secs(case.timeout_s)))
            .collect(),
        folder: like.folder.with_file_name("selfcheck"),
        keep: false,
        quiet: true,
        ..*like
    };
    let done = run::run(&job)?;
    let failed_with = |case: &str, words: &str| {
        done.ended.iter().any(|ended| {
            ended.case == case
                && matches!(&ended.outcome, Outcome::Failed(why) if why.contains(words))
        })
    };
    for (case, words) in [
        ("doomed/fails", "as it has to"),
        ("doomed/panics", "went down"),
        ("doomed/panics", "sysrq triggered crash"),
        ("doomed/hangs", "no end in time"),
    ] {
        ensure!(
            failed_with(case, words),
            "{case} was not seen to fail with {words:?}: {:?}",
            done.ended
        );
    }
    let passed = done
        .ended
        .iter()
        .any(|ended| ended.case == "doomed/passes" && ended.outcome == Outcome::Passed);
    ensure!(passed, "no case runs after a hang: {:?}", done.ended);
    Ok(())
}
