//! `cargo xtask bench control`: the control component with the mesh of a large cluster. Nodes that
//! are processes of their own follow it over TLS while pods change at a rate, and tell how long
//! each change took from its source to its acknowledgement.

mod agent;
mod document;
mod results;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_lab::{Dialogue, programs, tool};
use results::Results;
use serde_json::{Value, json};

use super::{machine, system};
use crate::{build, exec};

/// What to measure
#[derive(Args)]
pub(crate) struct ControlArgs {
    /// Nodes, each a process with a stream of its own
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// Pods of the mesh
    #[arg(long, default_value_t = 100_000)]
    workloads: usize,
    /// Services of the mesh, each pod an endpoint of one
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Services that the pods of a node talk to
    #[arg(long, default_value_t = 50)]
    talks_to: usize,
    /// Pods that change in a second
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// How long they do
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Runs; the median counts
    #[arg(long, default_value_t = 3)]
    reps: usize,
    /// Once and in little: shows that all of it works, and measures nothing
    #[arg(long)]
    short: bool,
    /// Use the binaries as they are
    #[arg(long)]
    no_build: bool,
    /// Measure nothing; make docs/SCALE.md from this file
    #[arg(long)]
    render: Option<PathBuf>,
    /// Where the results go
    #[arg(long, default_value = "target/control.json")]
    json: PathBuf,
}

impl ControlArgs {
    /// Small enough for a machine that does other things too.
    fn shortened(&self) -> Self {
        Self {
            nodes: 20,
            workloads: 2_000,
            services: 200,
            talks_to: 10,
            rate: 100.0,
            seconds: 1.0,
            reps: 1,
            render: None,
            json: self.json.clone(),
            ..*self
        }
    }

    fn size(&self) -> [String; 8] {
        let words = [
            ("--nodes", self.nodes),
            ("--workloads", self.workloads),
            ("--services", self.services),
            ("--talks-to", self.talks_to),
        ];
        let words = words.map(|(option, value)| [option.to_owned(), value.to_string()]);
        words.concat().try_into().expect("four times two")
    }
}

pub(crate) fn run(workspace: &Path, args: &ControlArgs) -> Result<()> {
    if let Some(file) = &args.render {
        return document::write(workspace, &Results::read(file)?);
    }
    if args.short {
        return measure(workspace, &args.shortened()).map(drop);
    }
    if !args.no_build {
        build::run(workspace)?;
    }
    let results = measure(workspace, args)?;
    let json = workspace.join(&args.json);
    fs::write(&json, results.json()).with_context(|| format!("writing {}", json.display()))?;
    eprintln!("also in {}", json.display());
    Ok(())
}

fn measure(workspace: &Path, args: &ControlArgs) -> Result<Results> {
    tool::raise_descriptor_limit().context("room for many processes")?;
    let mut about = machine::about();
    about["nodes"] = args.nodes.into();
    about["workloads"] = args.workloads.into();
    about["services"] = args.services.into();
    about["talks_to"] = args.talks_to.into();
    about["rate"] = args.rate.into();
    about["seconds"] = args.seconds.into();
    // Processes that wanted to run before anything of this did.
    let load = machine::setting("/proc/loadavg");
    about["load_before"] = load.split(' ').next().unwrap_or("?").into();
    let mut results = Results::new(about);
    for rep in 1..=args.reps {
        eprintln!("run {rep} of {}", args.reps);
        let folder = workspace.join(format!("target/bench-control-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let measured = once(&folder, args);
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        results.add(measured?);
    }
    eprintln!("a real agent in that mesh");
    results.set_agent(agent::weigh(args)?);
    println!("{}", document::table(&results));
    Ok(results)
}

/// One run, with everything started anew.
fn once(folder: &Path, args: &ControlArgs) -> Result<Value> {
    let pki = folder.join("pki");
    let mut init = Command::new(programs::mesh_binary("meshctl")?);
    init.args(["pki", "init", "--trust-domain", "cluster.local", "--dir"]);
    exec::read(init.arg(&pki))?;
    let program = programs::mesh_binary("mesh-scale")?;
    let part = |name: &str| {
        let mut command = Command::new(&program);
        command.arg(name).arg("--pki").arg(&pki).args(args.size());
        command
    };
    let mut nodes = Dialogue::start(&mut part("nodes"))?;
    read(&nodes.line()?)?;
    let started = Instant::now();
    let state = folder.join("state");
    let mut control = Dialogue::start(part("control").arg("--state-dir").arg(&state))?;
    let loaded = read(&control.line()?)?;
    let address = loaded["listening"].as_str().context("no address")?;
    let ready = read(&nodes.ask(&format!("go {address}"))?)?;
    let cold_start_s = started.elapsed().as_secs_f64();
    let pid = i32::try_from(control.pid())?;
    let settled_mib = system::private_mib(pid)?;
    let last = folder.join("last.json");
    let before_s = system::cpu_s(pid)?;
    let churn = format!("churn {} {} {}", args.rate, args.seconds, last.display());
    let churned = read(&control.ask(&churn)?)?;
    let control_cpu_s = system::cpu_s(pid)? - before_s;
    let fared = read(&nodes.ask(&format!("end {}", last.display()))?)?;
    let churned_mib = system::private_mib(pid)?;
    nodes.finish()?;
    control.finish()?;
    let behind = &fared["behind_at_the_end"];
    ensure!(
        *behind == 0,
        "{behind} changes did not reach who was to be told"
    );
    ensure!(
        fared["deliveries"].as_u64() > Some(0),
        "nobody was told of any change: {fared}"
    );
    let seconds = churned["seconds"].as_f64().context("no time")?;
    Ok(json!({
        "loaded_s": loaded["loaded_s"], "cold_start_s": cold_start_s, "ready": ready,
        "settled_mib": settled_mib, "churned_mib": churned_mib,
        "control_cpu": control_cpu_s / seconds,
        "churned": churned, "fared": fared,
    }))
}

fn read(line: &str) -> Result<Value> {
    serde_json::from_str(line).with_context(|| format!("no JSON: {line:?}"))
}
