//! What `cargo xtask bench control` runs: the control component with a source that changes pods at
//! a rate (`control`), and nodes of which each is a process with a stream of its own (`nodes`,
//! which starts a `node` for each).
#![forbid(unsafe_code)]

mod control;
mod mesh;
mod node;
mod nodes;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "mesh-scale")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a mesh of this size; commands come on standard input, a line each
    Control(control::ControlArgs),
    /// Start nodes and say how they fared; commands come on standard input, a line each
    Nodes(nodes::NodesArgs),
    /// One node; what it needs comes on standard input
    Node,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Control(args) => control::run(&args),
        Command::Nodes(args) => nodes::run(&args),
        Command::Node => node::run(),
    }
}

/// Nanoseconds since the epoch: the same clock in every process of the machine.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// A runtime of one thread, as the programs of the mesh have.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
