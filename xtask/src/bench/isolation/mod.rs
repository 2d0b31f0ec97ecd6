//! `cargo xtask bench isolation`: how much a tenant's neighbour can slow it down. A victim calls
//! at a fixed rate, alone and then beside each aggressor of another tenant on the same nodes;
//! by way of nothing, of Nodemesh, and of one haproxy or ztunnel a node that serves both tenants.
//!
//! All that carries traffic has one processor, in every column; the victim's apps have the
//! other, on which the aggressor's apps run only when the victim's don't want to.

mod cases;
mod causes;
mod columns;
mod document;
mod haproxy;
mod machine;
mod plot;
mod results;
mod schedule;
mod sweep;
mod ztunnel;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cases::Case;
use clap::Args;
use columns::{Kind, Stage};
use mesh_lab::aggressor::{Calls, Load, Measured, Site, Victim};
use mesh_lab::place::Place;
use mesh_lab::{call, programs, wait};
use results::{Results, Run};
use schedule::{Schedule, Step, Times};

use super::progress::Progress;
use super::ztunnel::ZtunnelArgs;
use crate::{build, setup};

/// Where each part runs.
const PROXIES: Place = Place {
    cpu: 0,
    background: false,
};
const APPS: Place = Place {
    cpu: 1,
    background: false,
};

/// Connections of the victim.
const CONNECTIONS: usize = 8;

/// What to measure
#[derive(Args)]
pub(crate) struct IsolationArgs {
    /// Runs of each case
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Seconds of each run that count
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Rates of the victim for all cases, in percent of what it can do
    #[arg(long, value_delimiter = ',', default_value = "30")]
    loads: Vec<f64>,
    /// Rates for the cases that press on the processor
    #[arg(long, value_delimiter = ',', default_value = "10,60")]
    sweep: Vec<f64>,
    /// Only aggressors whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// One short run of a few aggressors: shows that all of it works, and measures nothing
    #[arg(long)]
    short: bool,
    /// Use the binaries as they are
    #[arg(long)]
    no_build: bool,
    /// Measure nothing; make docs/ISOLATION.md and its plots from this file
    #[arg(long)]
    render: Option<PathBuf>,
    /// Where the results go
    #[arg(long, default_value = "target/isolation.json")]
    json: PathBuf,
    #[command(flatten)]
    ztunnel: ZtunnelArgs,
}

pub(crate) fn run(workspace: &Path, args: &IsolationArgs) -> Result<()> {
    if let Some(file) = &args.render {
        return document::write(workspace, &Results::read(file)?);
    }
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(
        cpus >= 2,
        "this needs two processors, one for proxies and one for apps; there is {cpus}"
    );
    let ztunnel = args.ztunnel.find("warn")?;
    programs::install(setup::BENCH)?;
    if !args.no_build {
        build::run(workspace)?;
    }
    let stage = Stage::start(args.noisy_place(), ztunnel.as_ref()).context("setting up")?;
    let schedule = args.schedule(&stage.kinds());
    let about = schedule.expected(args.reps()).as_secs_f64() / 60.0;
    let steps = schedule.steps.len();
    eprintln!("{} × {steps} runs take about {about:.1} min", args.reps());
    let mut results = Results::new(machine::about(&stage, &schedule, args.reps())?);
    let whole = measure(&stage, &schedule, args.reps(), &mut results);
    println!("{}", document::text(&results));
    let json = workspace.join(&args.json);
    fs::write(&json, results.json()).with_context(|| format!("writing {}", json.display()))?;
    eprintln!("also in {}", json.display());
    whole.with_context(|| stage.lab.log_tails())?;
    if ztunnel.is_none() {
        eprintln!("{}", super::ztunnel::ABSENT);
    }
    stage.finish()
}

impl IsolationArgs {
    fn wants(&self, case: Case) -> bool {
        let name = case.name();
        let chosen = self.only.is_empty() || self.only.iter().any(|part| name.contains(part));
        case == Case::Alone || chosen && (!self.short || case.is_quick())
    }

    fn reps(&self) -> usize {
        if self.short { 1 } else { self.reps }
    }

    /// Where the aggressor's apps run. The short form is for machines that do other things too,
    /// where what gives way to all of them might never run.
    fn noisy_place(&self) -> Place {
        Place {
            background: !self.short,
            ..APPS
        }
    }

    fn schedule(&self, kinds: &[Kind]) -> Schedule {
        let cases: Vec<Case> = Case::all().into_iter().filter(|c| self.wants(*c)).collect();
        let times = if self.short {
            Times::SHORT
        } else {
            Times::of(Duration::from_secs_f64(self.seconds))
        };
        let sweep = if self.short { &[][..] } else { &self.sweep };
        Schedule::new(kinds, &cases, [&self.loads, sweep], times)
    }
}

/// The steps of each run in turn, so that whatever else the machine does falls on all.
fn measure(stage: &Stage, schedule: &Schedule, reps: usize, results: &mut Results) -> Result<()> {
    let mut most = Vec::new();
    for kind in stage.kinds() {
        let rate =
            best_rate(stage, kind).with_context(|| format!("the most of {}", kind.name()))?;
        eprintln!("{}: at most {rate:.0} requests/s", kind.name());
        results.rate(kind, rate);
        most.push((kind, rate));
    }
    let most = |kind| most.iter().find(|(k, _)| *k == kind).map_or(0.0, |m| m.1);
    let mut progress = Progress::new(schedule.steps.len() * reps, schedule.expected(reps));
    for rep in 1..=reps {
        for step in &schedule.steps {
            let what = step.what();
            eprintln!("run {rep} of {reps}{}: {what}", progress.next());
            let run = once(stage, step, most(step.kind) * step.load / 100.0).context(what)?;
            results.add(step, run);
        }
    }
    Ok(())
}

/// Requests a second of the victim when each connection asks again as soon as it is answered.
fn best_rate(stage: &Stage, kind: Kind) -> Result<f64> {
    let [victim, _] = kind.tenants();
    let site = Site {
        client: stage.lab.pod(&format!("{victim}/client")),
        serve: stage.victims_server(kind),
        ..stage.site(kind)?
    };
    let time = Duration::from_secs(2);
    let running = APPS.run(|| Load::SmallRequests.start(&site, CONNECTIONS, time))?;
    let done = running.finish()?;
    ensure!(done.done > 0, "no request was answered: {done:?}");
    Ok(done.done as f64 / done.seconds)
}

fn once(stage: &Stage, step: &Step, rate: f64) -> Result<Run> {
    let Step {
        kind, case, times, ..
    } = *step;
    let [victim, _] = kind.tenants();
    let calls = Calls {
        to: stage.victims_server(kind),
        connections: CONNECTIONS,
        rate,
        time: times.aggression() + times.after,
        counts: times.lead..times.aggression(),
    };
    let pod = stage.lab.pod(&format!("{victim}/client"));
    let victim = APPS.run(|| Victim::start(pod, &calls))?;
    let aggression = stage
        .noisy_place
        .run(|| case.aggress(stage, kind, times.aggression()))?;
    let seen: Measured = victim.finish()?;
    settle(stage, kind)?;
    let goodput = seen.measured as f64 / times.measured.as_secs_f64() / rate;
    Ok(Run {
        seen,
        goodput,
        aggression,
        end: times.aggression(),
    })
}

/// Waits until both tenants are served again.
fn settle(stage: &Stage, kind: Kind) -> Result<()> {
    let site = stage.site(kind)?;
    let [victim, _] = kind.tenants();
    let victim = stage.lab.pod(&format!("{victim}/client"));
    for (pod, to) in [
        (site.client, site.serve),
        (victim, stage.victims_server(kind)),
    ] {
        let what = format!("{} to be served after the run", pod.key());
        wait::until_true(&what, Duration::from_secs(60), || {
            Ok(call::tcp(&pod.netns, to).served())
        })?;
    }
    Ok(())
}
