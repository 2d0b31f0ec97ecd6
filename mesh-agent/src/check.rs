//! `mesh-agent check`: whether this kernel will do, and what it makes of the programs.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::capture::{Measured, measure};
use crate::features::{Feature, Features, Need};

/// `mesh-agent check`.
#[derive(clap::Args, Clone, Debug)]
pub struct CheckArgs {
    /// Load the embedded programs as well, and print what the verifier makes of each
    #[arg(long)]
    pub programs: bool,
    /// Keep the verifier's whole log of each program as DIR/PROGRAM.log (implies --programs)
    #[arg(long, value_name = "DIR")]
    pub verifier_log: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Answer {
    #[serde(flatten)]
    features: Features,
    #[serde(skip_serializing_if = "Option::is_none")]
    programs: Option<Measured>,
}

/// Asks the kernel, prints what it has, and leaves nothing behind.
///
/// # Errors
/// If it lacks something required, or refuses a program; both after the rest is printed.
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let features = Features::probe();
    let verdict = features.require();
    let loaded = (args.programs || args.verifier_log.is_some())
        .then(|| measure(args.verifier_log.as_deref()));
    let (programs, refused) = match loaded {
        None => (None, None),
        Some(Ok(measured)) => (Some(measured), None),
        Some(Err(e)) => (None, Some(e)),
    };
    let answer = Answer { features, programs };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print_features(&answer.features);
        if let Some(programs) = &answer.programs {
            print_programs(programs);
        }
    }
    verdict?;
    refused
        .map_or(Ok(()), Err)
        .context("loading the embedded programs")
}

fn print_features(features: &Features) {
    let Features {
        kernel,
        machine,
        minimum,
        ..
    } = features;
    println!("Linux {kernel} on {machine}; tested from Linux {minimum} on");
    for (need, heading) in [
        (Need::Required, "required"),
        (Need::Optional, "used when present"),
    ] {
        println!("\n{heading}");
        for feature in features.features.iter().filter(|f| f.need == need) {
            print_feature(feature);
        }
    }
}

fn print_feature(feature: &Feature) {
    let Feature {
        name,
        purpose,
        since,
        config,
        lack,
        ..
    } = feature;
    let there = if lack.is_none() { "yes" } else { "no " };
    println!("  {there}  {name}");
    println!(
        "       {purpose} (Linux {since}{}{config})",
        if config.is_empty() { "" } else { "; " }
    );
    if let Some(lack) = lack {
        println!("       {lack}");
    }
}

fn print_programs(measured: &Measured) {
    println!(
        "\n{:<14}{:>13}{:>10}{:>18}{:>15}{:>9}",
        "program", "instructions", "verified", "translated bytes", "machine code", "load ms"
    );
    for program in &measured.programs {
        let or_unknown = |n: Option<u32>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        println!(
            "{:<14}{:>13}{:>10}{:>18}{:>15}{:>9.2}",
            program.name,
            program.instructions,
            or_unknown(program.verified_instructions),
            or_unknown(program.translated_bytes),
            program.jited_bytes,
            program.load_ms,
        );
    }
    println!(
        "object and maps {:.2} ms, with all programs {:.2} ms",
        measured.open_ms, measured.total_ms
    );
}
