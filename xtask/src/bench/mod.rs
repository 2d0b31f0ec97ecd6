//! `cargo xtask bench`: one table, one run. Each measure is taken of each way in turn, so
//! that whatever else the machine does falls on all of them.

mod control;
mod crowd;
mod curves;
mod document;
mod envoy;
mod goals;
mod haproxy;
mod idle;
mod instructions;
mod isolation;
mod machine;
mod marks;
mod measure;
mod plot;
mod policies;
mod progress;
mod results;
mod schedule;
mod spread;
mod svg;
mod system;
mod versions;
mod ways;
mod ztunnel;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use measure::How;
use mesh_lab::{Lab, programs, tool};
use progress::Progress;
use results::Results;
use schedule::Schedule;
use ways::{Others, Way};

use crate::{build, exec, setup};

/// How much to measure
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    other: Option<Other>,
    /// Length of each measurement
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Runs of each measurement; the median counts
    #[arg(long, default_value_t = 5, env = "REPS")]
    reps: usize,
    /// Only the measures whose name contains this (as printed on the way)
    #[arg(long, default_value = "")]
    only: String,
    /// Only the ways whose name contains this
    #[arg(long, default_value = "")]
    way: String,
    /// Wait up to this long before each measurement for the machine to be idle
    #[arg(long, default_value_t = 0)]
    quiet_wait_s: u32,
    /// Each once and in little: shows that all of it works, and measures nothing
    #[arg(long)]
    short: bool,
    /// Use the binaries as they are: those that were built to be measured, or in `NODEMESH_BIN_DIR`
    #[arg(long)]
    no_build: bool,
    /// Measure nothing; make docs/PERFORMANCE.md and its plots from this file
    #[arg(long)]
    render: Option<PathBuf>,
    /// Where the results go
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    #[command(flatten)]
    ztunnel: ztunnel::ZtunnelArgs,
}

impl BenchArgs {
    /// The short form takes it where it is, and installs nothing.
    fn envoy(&self, workspace: &Path) -> Option<PathBuf> {
        match setup::envoy(workspace, !self.short) {
            Ok(path) => Some(path),
            Err(error) => {
                eprintln!("no Envoy column: {error:#}");
                None
            }
        }
    }
}

/// Benchmarks beside the table
#[derive(Subcommand)]
enum Other {
    /// Measure how much a neighbour can slow a tenant down (root)
    Isolation(isolation::IsolationArgs),
    /// Measure the control component with the mesh of a large cluster
    Control(control::ControlArgs),
    /// Count the instructions of hot paths, and compare them with the record
    Instructions(instructions::InstructionsArgs),
}

/// Where programs are looked for, in the environment.
const BIN_DIR: &str = "NODEMESH_BIN_DIR";

pub(crate) fn run(workspace: &Path, args: &BenchArgs) -> Result<()> {
    match &args.other {
        Some(Other::Isolation(args)) => return isolation::run(workspace, args),
        Some(Other::Control(args)) => return control::run(workspace, args),
        Some(Other::Instructions(args)) => return instructions::run(workspace, args),
        None => {}
    }
    if let Some(file) = &args.render {
        return document::write(workspace, &Results::read(file)?);
    }
    let told = args.no_build && env::var_os(BIN_DIR).is_some();
    if !(args.short || told) {
        // Asked before the build, which may put another in its place.
        let mut again = Command::new(env::current_exe()?);
        again.args(env::args_os().skip(1));
        let programs = if args.no_build {
            build::measured_before(workspace)?
        } else {
            again.arg("--no-build");
            build::measured(workspace)?
        };
        // Where programs are found is for a whole process.
        return exec::run(again.env(BIN_DIR, programs));
    }
    let others = Others {
        ztunnel: args.ztunnel.find("info")?,
        envoy: args.envoy(workspace),
    };
    programs::install(setup::BENCH)?;
    if !args.no_build {
        build::run(workspace)?;
    }
    tool::raise_descriptor_limit().context("room for many connections")?;
    let lab = Lab::with_mesh(ways::plan(&others)).context("setting up")?;
    let carriers = ways::start(&lab, &others).context("what is compared with")?;
    let mut results = Results::new(versions::about(workspace, &lab, &others, args)?);
    let whole = {
        let mut ways = carriers.ways(&lab);
        ways.retain(|way| way.name.contains(&args.way));
        let schedule = Schedule::new(&ways, args);
        let measured = measure_all(&lab, &ways, &schedule, args, &mut results);
        let crowd = schedule.crowd;
        measured.with_context(|| lab.log_tails()).map(|()| crowd)
    };
    drop(carriers);
    let whole = whole.and_then(|crowd| {
        lab.finish()?;
        match crowd {
            Some(crowd) => crowd.measure(&args.way, others.ztunnel.as_ref(), &mut results),
            None => Ok(()),
        }
    });
    println!("{}", document::text(&results));
    let json = workspace.join(&args.json);
    fs::write(&json, results.json()).with_context(|| format!("writing {}", json.display()))?;
    eprintln!("also in {}", json.display());
    whole?;
    if others.ztunnel.is_none() {
        eprintln!("{}", ztunnel::ABSENT);
    }
    Ok(())
}

/// Every measure of every way, in turn.
fn measure_all(
    lab: &Lab,
    ways: &[Way<'_>],
    schedule: &Schedule,
    args: &BenchArgs,
    results: &mut Results,
) -> Result<()> {
    let expected = schedule.expected();
    eprintln!("this takes about {:.0} min", expected.as_secs_f64() / 60.0);
    let fresh = idle::weigh(ways, results)?;
    if let Some(connections) = schedule.idle {
        for rep in 1..=schedule.reps {
            eprintln!("run {rep} of {}: idle connections", schedule.reps);
            idle::measure(&fresh, connections, results)?;
        }
    }
    let how = How {
        seconds: schedule.seconds,
        rate: rate(ways, schedule, results)?,
    };
    let mut progress = Progress::new(schedule.all(), expected);
    let mut begin = |rep: usize, reps: usize, what: &str| {
        eprintln!("run {rep} of {reps}{}: {what}", progress.next());
        system::wait_quiet(args.quiet_wait_s);
    };
    for rep in 1..=schedule.reps {
        for step in &schedule.steps {
            let way = &ways[step.way];
            let what = format!("{}, {}", step.what.name(), way.name);
            begin(rep, schedule.reps, &what);
            for (row, value) in step.what.take(way, how).context(what)? {
                results.add(&row, way.name, value);
            }
        }
    }
    idle::after(ways, results)?;
    for rep in 1..=schedule.curve_reps {
        for step in &schedule.points {
            let way = &ways[step.way];
            let what = format!("{}, {}", step.what.name(), way.name);
            begin(rep, schedule.curve_reps, &what);
            let taken = step.what.take(lab, way, schedule.curve_seconds, results);
            taken.context(what)?;
        }
    }
    Ok(())
}

/// Half of what the peer can do at most, or who is there in its place.
fn rate(ways: &[Way<'_>], schedule: &Schedule, results: &mut Results) -> Result<f64> {
    let by_name = |name: &str| ways.iter().find(|way| way.name == name);
    let slowest = by_name(ways::PEER).or_else(|| by_name(ways::HAPROXY));
    let Some(way) = slowest.or(ways.first()) else {
        return Ok(0.0);
    };
    let rate = measure::most(way, schedule.seconds)? / 2.0;
    results.set_rate(rate.round(), way.name);
    Ok(rate)
}
