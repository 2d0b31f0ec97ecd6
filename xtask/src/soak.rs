//! `cargo xtask soak`: churn of everything under load, as long as one likes.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use mesh_lab::programs;
use mesh_lab::soak::{Soak, run as soak};

use crate::{build, setup};

/// What to run
#[derive(Args)]
pub(crate) struct SoakArgs {
    /// For how many minutes
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Gives the order of what is done; told at the start when left out
    #[arg(long)]
    seed: Option<u64>,
    /// Use the binaries as they are
    #[arg(long)]
    no_build: bool,
}

/// Runs it and tells of each thing that is done.
pub(crate) fn run(workspace: &Path, args: &SoakArgs) -> Result<()> {
    if !args.no_build {
        programs::install(setup::DEMO)?;
        build::run(workspace)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let soaked = Soak {
        seed: args.seed.unwrap_or(now.as_secs()),
        time: Duration::from_secs(args.minutes * 60),
    };
    println!("seed {}, {} minutes", soaked.seed, args.minutes);
    let outcome = soak(soaked, &mut |line| println!("{line}"))?;
    println!("\n{outcome}");
    Ok(())
}
