//! Control and agents in one thread, with their real state machines and without a clock or a
//! network: nodes are cut off, agents and control are restarted, streams are slow, agents can't
//! read what is new, replicas are behind each other. In each run:
//!
//! - what the workers of a node are told is at every instant what they would be told of one whole
//!   state that the sources have had, and no earlier one than before; a restart may go back to what
//!   was on the disk, another replica to where that one is;
//! - a policy that can't be read is as it last could be, or allows nothing that it was not to;
//! - when nothing changes any more, every node ends with what the sources say.
//!
//! The seed decides all: `SEED=17 cargo test --release -p mesh-fuzz --test simulation` runs that one
//! and tells what happened (with `BUG=Overtaken`, the bug in it), `SEEDS=100000` so many.

mod bugs;
mod news;
mod node;
mod oracle;
mod replica;
mod run;
mod sources;
mod stream;

use bugs::Bug;
use run::run;

/// Seeds that are run if nobody asks for another number.
const SEEDS: u64 = 200;

fn asked(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| asked(name).map(|text| text.parse::<u64>().expect("a number"));
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn no_node_is_ever_told_half_or_something_older() {
    let bug = asked("BUG").map(|name| {
        let mut all = Bug::ALL.into_iter();
        all.find(|bug| format!("{bug:?}") == name)
            .expect("a bug's name")
    });
    for seed in seeds() {
        let report = run(seed, bug);
        if asked("SEED").is_some() {
            println!("{}", report.trace.join("\n"));
        }
        assert_eq!(report.violation, None);
    }
}

#[test]
fn every_planted_bug_is_found() {
    for bug in Bug::ALL {
        let found = (0..SEEDS).find(|seed| run(*seed, Some(bug)).violation.is_some());
        let seed = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS} seeds"));
        println!("{bug:?}: seed {seed}");
    }
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 0..5 {
        assert_eq!(run(seed, None).trace, run(seed, None).trace);
    }
}
