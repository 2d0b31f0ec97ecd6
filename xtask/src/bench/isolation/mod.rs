//! `cargo xtask bench isolation`: how much a tenant's neighbour can slow it down. A victim calls
//! at a fixed rate, alone and then beside each aggressor of another tenant on the same nodes;
//! by way of nothing, of Nodemesh, and of one haproxy a node that serves both tenants.
//!
//! All that carries traffic has one processor, in every column; the victim's apps have the
//! other, on which the aggressor's apps run only when the victim's don't want to.

mod cases;
mod columns;
mod document;
mod haproxy;
mod plot;
mod results;

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
/// The parts of a run.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The aggressor is at work before the victim's requests count.
    lead: Duration,
    /// They count.
    measured: Duration,
    /// The aggressor has ended, and the victim goes on.
    after: Duration,
}

impl Times {
    fn aggression(&self) -> Duration {
        self.lead + self.measured
    }
}

/// What to measure
#[derive(Args)]
pub(crate) struct IsolationArgs {
    /// Runs of each case
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Seconds of each run that count
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rates of the victim, in percent of what it can do
    #[arg(long, value_delimiter = ',', default_value = "30")]
    loads: Vec<f64>,
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
    programs::install(setup::BENCH)?;
    if !args.no_build {
        build::run(workspace)?;
    }
    let cases: Vec<Case> = Case::all()
        .into_iter()
        .filter(|case| args.wants(*case))
        .collect();
    let stage = Stage::start(args.noisy_place()).context("setting up")?;
    let measured = measure(&stage, args, &cases).with_context(|| stage.lab.log_tails())?;
    println!("{}", measured.text());
    let json = workspace.join(&args.json);
    fs::write(&json, measured.json()).with_context(|| format!("writing {}", json.display()))?;
    eprintln!("also in {}", json.display());
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

    fn times(&self) -> Times {
        let of = Duration::from_millis;
        let (lead, after) = if self.short {
            (of(200), of(200))
        } else {
            (of(500), of(1_500))
        };
        let seconds = if self.short { 0.5 } else { self.seconds };
        let measured = Duration::from_secs_f64(seconds);
        Times {
            lead,
            measured,
            after,
        }
    }
}

/// Every case of every column, in turn, so that whatever else the machine does falls on all.
fn measure(stage: &Stage, args: &IsolationArgs, cases: &[Case]) -> Result<Results> {
    let mut results = Results::new(args.reps(), args.times().measured, stage);
    let mut most = Vec::new();
    for kind in Kind::ALL {
        let rate =
            best_rate(stage, kind).with_context(|| format!("the most of {}", kind.name()))?;
        eprintln!("{}: at most {rate:.0} requests/s", kind.name());
        results.rate(kind, rate);
        most.push((kind, rate));
    }
    for rep in 1..=args.reps() {
        for load in &args.loads {
            for case in cases {
                for (kind, most) in &most {
                    let what = format!("{}, {}, {load} %", case.name(), kind.name());
                    eprintln!("run {rep} of {}: {what}", args.reps());
                    let rate = most * load / 100.0;
                    let run = once(stage, *kind, *case, rate, args.times());
                    if let Some(run) = run.context(what)? {
                        results.add(*kind, *case, *load, run);
                    }
                }
            }
        }
    }
    Ok(results)
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

/// One run; none if the case is nothing for this column.
fn once(stage: &Stage, kind: Kind, case: Case, rate: f64, times: Times) -> Result<Option<Run>> {
    if !case.concerns(kind) {
        return Ok(None);
    }
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
    Ok(Some(Run {
        seen,
        goodput,
        aggression,
        end: times.aggression(),
    }))
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
