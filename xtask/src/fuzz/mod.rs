//! `cargo xtask fuzz`: runs the fuzz targets, keeps what they have found out, and says how far they
//! have come.
//!
//! libFuzzer comes with the crate `libfuzzer-sys`, and its instrumentation with rustc, so a stable
//! toolchain is all that is needed. Nothing here is part of `cargo xtask test`, which only replays
//! the corpora (`mesh-fuzz/tests/corpus.rs`).

mod corpus;
mod coverage;
mod engine;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;

/// How long to fuzz what
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Only this target
    #[arg(long)]
    target: Option<String>,
    /// Minutes of CPU for each target; 0 only minimises the corpora
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Say how much of the code the corpora reach, and write it all to docs/FUZZING.md
    #[arg(long)]
    coverage: bool,
}

/// What is said of a target in `fuzz/targets.json`.
struct Facts {
    /// Who words what it reads, at worst.
    by: String,
    /// What it reads, in words.
    reads: String,
    /// The files of this repository that read it.
    sources: Vec<String>,
}

/// Fuzzes, minimises the corpora, and writes the table.
pub(crate) fn run(workspace: &Path, args: &FuzzArgs) -> Result<()> {
    let targets = targets(workspace, args.target.as_deref())?;
    let names: Vec<&str> = targets.keys().map(String::as_str).collect();
    let engine = engine::build(workspace, &names)?;
    let mut runs = BTreeMap::new();
    let mut found = Vec::new();
    for target in &names {
        let run = engine.fuzz(target, args.minutes)?;
        eprintln!(
            "{target}: {} executions in {:.1} minutes of CPU{}",
            run.executions,
            run.cpu_minutes,
            if run.artifacts.is_empty() {
                ""
            } else {
                ", and a finding"
            }
        );
        corpus::minimise(&engine, target)?;
        found.extend(run.artifacts.iter().map(|path| (*target, path.clone())));
        runs.insert((*target).to_owned(), run);
    }
    if args.coverage {
        let covered = coverage::measure(workspace, &targets)?;
        table::write(workspace, &targets, &runs, &covered)?;
    }
    if found.is_empty() {
        return Ok(());
    }
    for (target, path) in &found {
        eprintln!(
            "{target} fails with {}: once that is fixed, keep it as \
             fuzz/corpus/{target}/finding-<what>",
            path.display()
        );
    }
    bail!("{} inputs make a target fail", found.len())
}

fn targets(workspace: &Path, only: Option<&str>) -> Result<BTreeMap<String, Facts>> {
    let path = workspace.join("fuzz/targets.json");
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what it should be", path.display()))?;
    let known: Vec<&String> = all.keys().collect();
    if let Some(only) = only
        && !all.contains_key(only)
    {
        bail!("no target is called {only:?}; there are {known:?}");
    }
    let wanted = all
        .iter()
        .filter(|(name, _)| only.is_none_or(|only| only == *name));
    wanted
        .map(|(name, facts)| {
            let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
            let said = |what: &str| {
                text(&facts[what])
                    .with_context(|| format!("{}: {name} lacks {what:?}", path.display()))
            };
            let sources = facts["sources"].as_array().into_iter().flatten();
            let facts = Facts {
                by: said("by")?,
                reads: said("reads")?,
                sources: sources.filter_map(text).collect(),
            };
            Ok((name.clone(), facts))
        })
        .collect()
}
