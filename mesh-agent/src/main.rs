//! `mesh-agent`: the node agent's one binary. `run` is the supervisor; `worker` is started
//! by the supervisor only; the rest talk to a running supervisor, or clean up after one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use mesh_agent::check::{self, CheckArgs};
use mesh_agent::supervisor::admin::{self, PodAdd, Request, Response};
use mesh_agent::supervisor::config::{Config, EX_USAGE, RunArgs, default_run_dir};
use mesh_agent::supervisor::report::{Level, PodReport, PodState};
use mesh_agent::supervisor::unload::UnloadArgs;
use mesh_agent::{sandbox, supervisor, worker};

/// The node agent of Nodemesh.
///
/// It captures the TCP of enrolled pods with eBPF and carries it in mutual TLS, through one
/// sandboxed worker process for each pod. Needs root, cgroup v2 and Linux 6.1 or later.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = RUN_EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const RUN_EXAMPLE: &str = "\
A node from nothing:
  mesh-control token create --state-dir /var/lib/mesh-control --node node-a > token
  mesh-agent run --node node-a --control https://10.0.0.1:15012 \\
      --trust-bundle root.pem --join-token-file token &
  mesh-agent pod add --namespace shop --name cart --netns /run/netns/cart
  mesh-agent status";

const CHECK_EXAMPLE: &str = "\
Examples:
  mesh-agent check
  mesh-agent check --json | jq '.features[] | select(.lack)'
  mesh-agent check --programs --verifier-log /tmp/verifier";

#[derive(Subcommand)]
enum Command {
    /// Run the supervisor in the foreground
    ///
    /// Joins the mesh with the token (once: later runs use the node certificate in
    /// --state-dir), loads the eBPF programs, and starts a worker for each pod that is both
    /// added here (`pod add`) and enrolled by control (label nodemesh.dev/enroll on its
    /// namespace).
    ///
    /// Ending it, by SIGTERM or SIGKILL, takes nothing down: workers carry on, capture stands,
    /// and the next `run` adopts them. Only `mesh-agent unload` removes them.
    ///
    /// Exit status: 0 after SIGTERM or SIGINT, 64 for mistakes in the command line, 1 else.
    Run(Box<RunArgs>),
    /// Tell the supervisor of pods, as a CNI plugin does
    #[command(subcommand)]
    Pod(PodCommand),
    /// Print the state of the supervisor and of its pods, as JSON
    Status(RunDir),
    /// Replace workers that run another program than the supervisor
    ///
    /// A new worker is born beside the old one, takes over once it is ready, and the old one
    /// finishes its connections. This is what the supervisor does by itself after an upgrade
    /// (unless --roll manual). By hand it begins anew after it has stopped because new workers failed.
    /// Prints how far it is, as JSON; `status` says it later.
    Roll {
        #[command(flatten)]
        run_dir: RunDir,
        /// Every worker, also those that run the same program
        #[arg(long)]
        all: bool,
    },
    /// Say whether this kernel has what the agent needs
    ///
    /// Asks the kernel itself, in the way `run` does at its start, and leaves nothing behind:
    /// what is required, what is used when present, what each is for, which version of Linux
    /// brought it, and the option it is built with. With --programs also what the verifier
    /// makes of the embedded programs. Needs root, and no supervisor; harms none that runs.
    ///
    /// Exit status: 0 if `run` would start here, 1 if something required is missing.
    #[command(after_help = CHECK_EXAMPLE)]
    Check(CheckArgs),
    /// Take an instance off this kernel: workers, programs, maps, cgroups, files
    ///
    /// The supervisor must have ended. Run it in the network namespace that the supervisor ran in.
    /// Pods that were enrolled talk in clear afterwards. The
    /// node's key and certificate in --state-dir stay, so that it can come back without a
    /// new token.
    Unload(UnloadArgs),
    /// A pod's worker; started by the supervisor only
    #[command(hide = true)]
    Worker,
}

#[derive(Subcommand)]
enum PodCommand {
    /// Pair a pod with its network namespace and wait until it is enrolled
    ///
    /// The namespace is verified: not the node's own, no other pod's, and holding every
    /// address that control knows of the pod. Prints the outcome. Exit status 0 if the pod
    /// is enrolled, or if control says that it is not in the mesh; else 1 with the reason,
    /// and the supervisor goes on trying until `pod remove`.
    Add {
        #[command(flatten)]
        pod: PodName,
        /// Path of the pod's network namespace, e.g. /run/netns/cart or /proc/PID/ns/net
        #[arg(long, value_name = "PATH")]
        netns: PathBuf,
        /// How long to wait for the enrolment, e.g. 10s or 500ms
        #[arg(long, default_value = "10s", value_parser = parse_duration)]
        timeout: Duration,
    },
    /// Take a pod out of the mesh; returns when nothing of it is left
    Remove {
        #[command(flatten)]
        pod: PodName,
    },
    /// List the pods that were added, one line each
    List(RunDir),
}

#[derive(Args)]
struct PodName {
    #[command(flatten)]
    run_dir: RunDir,
    /// The pod's Kubernetes namespace
    #[arg(long)]
    namespace: String,
    /// The pod's name
    #[arg(long)]
    name: String,
}

#[derive(Args)]
struct RunDir {
    /// The supervisor's --run-dir
    #[arg(long, value_name = "DIR", default_value_os_t = default_run_dir("default"))]
    run_dir: PathBuf,
}

pub(crate) fn main() -> ExitCode {
    // A worker drops its privileges before there is a thread, an allocation of note, or a
    // parsed argument.
    if sandbox::is_worker() {
        return run_worker();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() {
                exit_code(EX_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let outcome = match cli.command {
        Command::Run(args) => return run_supervisor(*args),
        Command::Worker => return run_worker(),
        Command::Pod(command) => pod(command),
        Command::Status(RunDir { run_dir }) => status(&run_dir),
        Command::Roll { run_dir, all } => roll(&run_dir.run_dir, all),
        Command::Check(args) => check::check(&args),
        Command::Unload(args) => supervisor::unload::unload(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("mesh-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn run_worker() -> ExitCode {
    let channel = match sandbox::become_worker() {
        Ok(channel) => channel,
        // The supervisor was told; there is nowhere else to tell it.
        Err(_) => return ExitCode::FAILURE,
    };
    match worker::run(channel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run_supervisor(args: RunArgs) -> ExitCode {
    let config = match Config::validate(args) {
        Ok(config) => config,
        Err(faults) => {
            for fault in &faults {
                eprintln!("mesh-agent: {fault}");
            }
            eprintln!("mesh-agent: nothing was started; see `mesh-agent run --help`");
            return exit_code(EX_USAGE);
        }
    };
    match supervisor::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(run_dir: &std::path::Path, request: &Request) -> anyhow::Result<Response> {
    let response = admin::ask(run_dir, request).context("asking the supervisor")?;
    match &response.error {
        Some(why) => Err(anyhow::anyhow!("{why}")),
        None => Ok(response),
    }
}

fn pod(command: PodCommand) -> anyhow::Result<()> {
    match command {
        PodCommand::Add {
            pod,
            netns,
            timeout,
        } => {
            let netns = std::path::absolute(&netns)
                .with_context(|| format!("--netns {}", netns.display()))?;
            let request = Request::PodAdd(PodAdd {
                namespace: pod.namespace,
                name: pod.name,
                netns,
                timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
                ..PodAdd::default()
            });
            let response = ask(&pod.run_dir.run_dir, &request)?;
            println!(
                "{}",
                describe(&response.pod.context("no pod in the answer")?)
            );
            Ok(())
        }
        PodCommand::Remove { pod } => {
            let (namespace, name) = (pod.namespace, pod.name);
            let request = Request::PodRemove {
                namespace: namespace.clone(),
                name: name.clone(),
                container: String::new(),
            };
            ask(&pod.run_dir.run_dir, &request)?;
            println!("{namespace}/{name}: removed");
            Ok(())
        }
        PodCommand::List(RunDir { run_dir }) => {
            let status = ask(&run_dir, &Request::Status)?.status;
            for pod in status.context("no status in the answer")?.pods {
                println!("{}", describe(&pod));
            }
            Ok(())
        }
    }
}

fn status(run_dir: &std::path::Path) -> anyhow::Result<()> {
    let status = ask(run_dir, &Request::Status)?.status;
    let status = status.context("no status in the answer")?;
    println!("{}", serde_json::to_string_pretty(&status)?);
    Ok(())
}

fn roll(run_dir: &std::path::Path, all: bool) -> anyhow::Result<()> {
    let status = ask(run_dir, &Request::Roll { all })?.status;
    let status = status.context("no status in the answer")?;
    println!("{}", serde_json::to_string_pretty(&status.roll)?);
    Ok(())
}

fn describe(pod: &PodReport) -> String {
    let PodReport {
        namespace, name, ..
    } = pod;
    let state = match (pod.state, pod.worker_pid) {
        (PodState::Enrolled, Some(pid)) => format!(
            "enrolled ({}) as {}, worker {pid}, uid {}, slot {}",
            pod.level.map_or("level unknown", Level::name),
            pod.identity,
            pod.uid,
            pod.slot
        ),
        (PodState::Enrolled, None) => "enrolled, worker on its way back".to_owned(),
        (PodState::NotInMesh, _) => "not in the mesh".to_owned(),
        (PodState::Waiting, _) => "waiting".to_owned(),
        (PodState::Starting, _) => "starting".to_owned(),
        (PodState::Refused, _) => "refused".to_owned(),
        (PodState::CutOff, _) => "cut off".to_owned(),
        (PodState::Leaving, _) => "leaving".to_owned(),
    };
    let mut line = format!("{namespace}/{name}: {state}");
    if pod.worker_pid.is_some() {
        let (cpu_s, memory_mib) = (pod.cpu_us / 1_000_000, pod.memory_bytes >> 20);
        let by = pod.budget.join(", ");
        line.push_str(&format!(
            ", used {cpu_s} s of CPU and has {memory_mib} MiB, budget: {by}"
        ));
    }
    if pod.worker_outdated {
        line.push_str("; its worker runs another program than the agent and is to be replaced");
    }
    for old in &pod.draining {
        line.push_str(&format!(
            "; worker {} drains: {} connections, until {} (seconds since the epoch)",
            old.pid, old.connections, old.until_s
        ));
    }
    match pod.foreign_processes.as_str() {
        "" if pod.state == PodState::Enrolled => {
            line.push_str("; foreign processes in it are not told apart (yet)");
        }
        "" | "audit" => {}
        refused => line.push_str(&format!("; foreign processes: {refused}")),
    }
    for lack in &pod.budget_unenforced {
        line.push_str(&format!("; not in force: {lack}"));
    }
    if !pod.reason.is_empty() {
        line.push_str(&format!(": {}", pod.reason));
    }
    let older = &pod.older;
    if older.connections > 0 {
        let left_s = older
            .until_s
            .unwrap_or_default()
            .saturating_sub(now_s())
            .max(0);
        line.push_str(&format!(
            "; {} connections older than its enrolment go on outside the mesh, for {left_s} s at most: {}",
            older.connections,
            older.peers.join(", ")
        ));
    }
    if !pod.probe_ports.is_empty() {
        let ports: Vec<String> = pod.probe_ports.iter().map(u16::to_string).collect();
        line.push_str(&format!("; kubelet's probes pass to {}", ports.join(", ")));
    }
    if pod.unhealthy {
        line.push_str(&format!("; unhealthy: {}", pod.health_detail));
    }
    line
}

/// Seconds since the epoch.
fn now_s() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit_ms) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1_000)
    } else if let Some(number) = text.strip_suffix('m') {
        (number, 60_000)
    } else {
        return Err("use a number and ms, s or m, such as 10s".to_owned());
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{number:?} is not a whole number"))?;
    Ok(Duration::from_millis(number.saturating_mul(unit_ms)))
}
