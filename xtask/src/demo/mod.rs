//! `cargo xtask demo`: the mesh at work on two nodes, step by step.

mod failures;
mod narrator;
mod policy;
mod stage;
mod traffic;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use mesh_lab::programs;
use narrator::Narrator;
use stage::Stage;

use crate::{build, setup};

/// How to show it
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Run unattended: no pause between the steps
    #[arg(long)]
    check: bool,
    /// Leave it running at the end, with things to try, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Use the binaries as they are
    #[arg(long)]
    no_build: bool,
}

type Step = fn(&mut Stage, &Narrator) -> Result<()>;

/// Every step but the last, which ends the stage.
const STEPS: &[(&str, Step)] = &[
    (
        "The mesh starts: pods join by a label on their namespace",
        stage::start_mesh,
    ),
    (
        "A request that works, and whom each side saw",
        traffic::request,
    ),
    ("What is on the wire between the nodes", traffic::wire),
    (
        "A caller outside the mesh is refused, and told why",
        traffic::outside_caller,
    ),
    (
        "A destination that nobody knows is refused, and told why",
        traffic::unknown_destination,
    ),
    (
        "A member that no rule allows is refused, and told why",
        policy::refused,
    ),
    (
        "A policy is edited: an open connection is cut, and allowed again",
        policy::edited,
    ),
    (
        "An endpoint of a service fails, and nobody notices",
        policy::endpoint_fails,
    ),
    (
        "A worker is killed under load, with control stopped",
        failures::kill_workers,
    ),
    (
        "Both supervisors are killed, and adopt their workers again",
        failures::kill_supervisors,
    ),
];

/// Shows all steps; each claim is checked, and the first that does not hold is the error.
pub(crate) fn run(workspace: &Path, args: &DemoArgs) -> Result<()> {
    programs::install(setup::DEMO)?;
    if !args.no_build {
        build::run(workspace)?;
    }
    let mut narrator = Narrator::new(STEPS.len() + 2, !args.check);
    narrator.step("Two nodes, a bridge, pods as network namespaces");
    let mut stage = Stage::set(&narrator).context("setting the stage")?;
    for (title, step) in STEPS {
        narrator.step(title);
        step(&mut stage, &narrator).with_context(|| {
            format!(
                "step {} ({title}) is not as claimed\n{}",
                narrator.position(),
                stage.lab.log_tails()
            )
        })?;
    }
    if args.keep {
        stage.things_to_try(&narrator);
        loop {
            // Ctrl-C ends the process after the lab is removed.
            std::thread::park_timeout(Duration::from_secs(3600));
        }
    }
    narrator.step("Nothing is left");
    stage.clear(&narrator).context("cleaning up")
}
