//! `cargo xtask bench`: one table, one run. Each measure is taken of each way in turn, so
//! that whatever else the machine does falls on all of them.

mod haproxy;
mod isolation;
mod measure;
mod system;
mod table;
mod ways;
mod zds;
mod ztunnel;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use measure::Measure;
use mesh_lab::{Lab, Plan, PodSpec, call, programs, servers, wait};
use table::Table;
use ways::Way;

use crate::{build, setup};

/// How much to measure
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    other: Option<Other>,
    /// Length of each measurement
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Runs of each measurement; the median counts
    #[arg(long, default_value_t = 3, env = "REPS")]
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
    /// Use the binaries as they are
    #[arg(long)]
    no_build: bool,
    #[command(flatten)]
    ztunnel: ztunnel::ZtunnelArgs,
}

/// Benchmarks beside the table
#[derive(Subcommand)]
enum Other {
    /// Measure how much a neighbour can slow a tenant down (root)
    Isolation(isolation::IsolationArgs),
}

/// What nginx answers: 64 bytes.
const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\\n";

/// Name of the way whose ratios to the others the table gives.
const MESH: &str = "Nodemesh";

/// Port of nginx and of iperf3 on each server.
const HTTP_PORT: u16 = 8080;
const IPERF_PORT: u16 = 5201;

pub(crate) fn run(workspace: &Path, args: &BenchArgs) -> Result<()> {
    if let Some(Other::Isolation(args)) = &args.other {
        return isolation::run(workspace, args);
    }
    let ztunnel = args.ztunnel.find()?;
    programs::install(setup::BENCH)?;
    if !args.no_build {
        build::run(workspace)?;
    }
    let others = ztunnel.as_ref().map(|_| ztunnel::NAMESPACE);
    let namespaces: Vec<&str> = ["plain", "proxied"].into_iter().chain(others).collect();
    let lab = Lab::with_mesh(plan(&namespaces)).context("setting up")?;
    let table = {
        let mut apps = Vec::new();
        for pod in lab.pods().filter(|pod| pod.name() == "server") {
            apps.push(servers::quiet_nginx(pod, &[HTTP_PORT], BODY)?);
            apps.push(servers::iperf3(pod)?);
        }
        let pair = haproxy::start(&lab).context("starting the haproxy pair")?;
        let ztunnels = ztunnel.as_ref().map(|z| start_ztunnels(&lab, z));
        let ztunnels = ztunnels.transpose().context("the ztunnel pair")?;
        let mut ways = ways::all(&lab, &pair, ztunnels.as_ref());
        ways.retain(|way| way.name.contains(&args.way));
        measure_all(&ways, args).with_context(|| lab.log_tails())?
    };
    println!("{}", table.text(args.reps, args.seconds));
    if ztunnel.is_none() {
        println!("\n{}", ztunnel::ABSENT);
    }
    let json = workspace.join("target/bench.json");
    fs::write(&json, table.json(args.reps, args.seconds))
        .with_context(|| format!("writing {}", json.display()))?;
    eprintln!("also in {}", json.display());
    lab.finish()
}

fn start_ztunnels(lab: &Lab, ztunnel: &ztunnel::Ztunnel) -> Result<ztunnel::Pair> {
    let ends = ["client", "server"].map(|name| lab.pod(&format!("{}/{name}", ztunnel::NAMESPACE)));
    let pair = ztunnel::start(lab, ztunnel, &ends)?;
    let [client, server] = ends;
    ztunnel::check(lab, ends, || {
        let nginx = SocketAddr::new(server.v4().into(), HTTP_PORT);
        call::http(&client.netns, nginx, "/", wait::PATIENCE).map(drop)
    })?;
    Ok(pair)
}

/// Every measure of every way, in turn.
fn measure_all(ways: &[Way<'_>], args: &BenchArgs) -> Result<Table> {
    let mut table = Table::new(ways);
    for way in ways {
        table.add(way, memory(way, "private MiB per proxy process, idle")?);
    }
    for rep in 1..=args.reps {
        let wanted = |measure: &Measure| measure.name().contains(&args.only);
        for measure in Measure::ALL.into_iter().filter(wanted) {
            for way in ways {
                let what = format!("{}, {}", measure.name(), way.name);
                eprintln!("run {rep} of {}: {what}", args.reps);
                system::wait_quiet(args.quiet_wait_s);
                table.add(way, measure.take(way, args.seconds).context(what)?);
            }
        }
    }
    for way in ways {
        table.add(
            way,
            memory(way, "private MiB per proxy process, after all")?,
        );
    }
    Ok(table)
}

/// A client and a server in each namespace, on different nodes; only the mesh's are enrolled.
fn plan(others: &[&str]) -> Plan {
    let plan = Plan::nodes(2).enrolled("mesh");
    let plan = others.iter().fold(plan, |plan, name| plan.namespace(name));
    let all = others.iter().chain(&["mesh"]);
    all.fold(plan, |plan, namespace| {
        plan.pod(PodSpec::new(namespace, "client"))
            .pod(PodSpec::new(namespace, "server").node(1))
    })
}

/// Private memory of the largest of the processes that carry the traffic.
fn memory(way: &Way<'_>, row: &'static str) -> Result<measure::Results> {
    let pids = (way.proxies)()?;
    let sizes: Result<Vec<f64>> = pids.iter().map(|pid| system::private_mib(*pid)).collect();
    let largest = sizes?.into_iter().reduce(f64::max);
    Ok(largest.map(|mib| (row, mib)).into_iter().collect())
}
