//! `meshctl`: the operator's command line.
#![forbid(unsafe_code)]

mod backup;
mod check;
mod cluster;
mod control;
mod metrics;
mod pki;
mod place;
mod status;
mod why;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// EX_USAGE of sysexits.h: the command line is wrong.
const EX_USAGE: u8 = 64;

/// The operator's command line of Nodemesh.
#[derive(Parser)]
#[command(
    name = "meshctl",
    version,
    after_help = "\
Examples:

  meshctl status                            nodes, their workers, versions, certificates
  meshctl why shop/cart-1 svc/shop/web:80   may this pod call that service, and if not, why
  meshctl why shop/cart-1 10.9.0.1:53 --protocol udp
  meshctl pki init --dir pki --trust-domain cluster.local

status and why ask a running mesh-control on its host, as root, by the socket control.sock in
its --state-dir: say which one with --control-socket or NODEMESH_CONTROL_SOCKET."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Certificates for trying Nodemesh out
    Pki {
        #[command(subcommand)]
        command: PkiCommand,
    },
    /// Show the mesh's nodes and the pods on them
    #[command(after_help = "\
A node says what it does when that changes, and every 10 s at least. One that has been silent
for 30 s is called so; what it last said of its pods' health stays.

Examples:

  meshctl status
  meshctl status -o json | jq '.nodes[] | select(.report.behind) | .name'

Exit status: 0 shown, 2 mesh-control can't be asked, 64 wrong usage.")]
    Status(status::StatusArgs),
    /// Print mesh-control's own series, as Prometheus reads them
    #[command(after_help = "\
They are told to root on control's host alone; for a Prometheus, have a timer write them where a
node exporter's textfile collector looks.

Exit status: 0 shown, 2 mesh-control can't be asked, 64 wrong usage.")]
    Metrics(metrics::MetricsArgs),
    /// Say whether a cluster has what the mesh needs, as far as it can be seen
    #[command(after_help = "\
The API server's version, the definitions' version, encryption of its store as far as it shows,
replicas, agents, what objects say of themselves; with --control-socket the signer's end and the nodes.
What can't be seen from here is called unknown.

Exit status: 0 nothing is bad, 1 something is, 2 the cluster can't be asked, 64 wrong usage.")]
    Check(check::CheckArgs),
    /// Save all that the mesh has been told: its objects, and which namespaces are enrolled
    #[command(after_help = "\
Of a cluster these are the objects of the mesh's own kinds and the mesh's labels of namespaces;
of a folder, its manifests as they are. Keys, certificates and tokens are not in it. The hash that it
prints is in the file as well: `restore` refuses a file that was altered.

Examples:

  meshctl backup --kubernetes --to mesh.json
  meshctl backup --manifests /etc/nodemesh/manifests > mesh.json

Exit status: 0 saved, 1 failed, 64 wrong usage.")]
    Backup(backup::BackupArgs),
    /// Put back what `backup` has saved
    #[command(after_help = "\
What differs is written as the backup has it: what denies first, what allows last. What is there and
not in the backup stays, unless --prune is given. Afterwards everything is read again.

Examples:

  meshctl restore mesh.json --kubernetes --dry-run
  meshctl restore mesh.json --kubernetes --prune
  meshctl restore mesh.json --manifests /etc/nodemesh/manifests

Exit status: 0 restored, 1 failed (it can be run again), 64 wrong usage.")]
    Restore(backup::RestoreArgs),
    /// Say what the mesh would do with a flow, and why
    #[command(after_help = "\
The answer is made as the workers of both ends make it, from the manifests in force and the
health that nodes report: what was dialled, the decision at the source and at the destination,
the policy that decided, the reason's code as in logs and metrics, EPERM where the kernel
refuses the app's connect, and, where a rule is missing, a policy that would allow it.

Examples:

  meshctl why shop/cart-1 svc/shop/web          the service's only port
  meshctl why shop/cart-1 svc/shop/web:80
  meshctl why shop/cart-1 shop/web-1:8080       a pod, by its own port
  meshctl why shop/cart-1 192.0.2.7:443         somewhere outside
  meshctl why 192.0.2.7 '[fd00:1::2]:9090'      from outside, to a pod's address
  meshctl why shop/cart-1 10.96.0.10:53 --protocol udp

Exit status: 0 allowed (also where only the audit level lets it through), 1 refused, 2 it can't
be told (unknown names, or it depends on the endpoint that is chosen), 64 wrong usage.")]
    Why(why::WhyArgs),
}

#[derive(Subcommand)]
enum PkiCommand {
    /// Make a demo root and the intermediate that mesh-control signs with, offline
    Init(pki::InitArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A failure to print leaves nothing else to do.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    match cli.command {
        Command::Pki {
            command: PkiCommand::Init(args),
        } => match pki::init(&args) {
            Ok(report) => {
                print!("{report}");
                ExitCode::SUCCESS
            }
            Err(error) => failed("meshctl pki init", &error),
        },
        Command::Check(args) => match check::check(&args) {
            Ok((found, good)) => {
                print(&found);
                ExitCode::from(u8::from(!good))
            }
            Err(error) => {
                eprintln!("meshctl check: {error:#}");
                ExitCode::from(why::CANT_TELL)
            }
        },
        Command::Backup(args) => match backup::backup(&args) {
            Ok(told) => {
                eprintln!("{told}");
                ExitCode::SUCCESS
            }
            Err(error) => failed("meshctl backup", &error),
        },
        Command::Restore(args) => match backup::restore(&args) {
            Ok(done) => {
                print(&done);
                ExitCode::SUCCESS
            }
            Err(error) => failed("meshctl restore", &error),
        },
        Command::Status(args) => match status::status(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => cant_tell("meshctl status", &error),
        },
        Command::Metrics(args) => match metrics::metrics(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => cant_tell("meshctl metrics", &error),
        },
        Command::Why(args) => why::why(&args).unwrap_or_else(|e| cant_tell("meshctl why", &e)),
    }
}

fn failed(what: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{what}: {error:#}");
    ExitCode::FAILURE
}

fn cant_tell(what: &str, error: &control::AskFault) -> ExitCode {
    eprintln!("{what}: {error}");
    ExitCode::from(why::CANT_TELL)
}

/// Prints an answer. Who has stopped reading it (`| head`) has seen enough.
fn print(answer: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", answer.trim_end());
}

/// An answer as indented JSON.
fn json(answer: &impl serde::Serialize) -> String {
    // Texts, numbers and lists of them: nothing that has no JSON.
    serde_json::to_string_pretty(answer).unwrap_or_default()
}
