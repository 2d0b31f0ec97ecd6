//! `cargo xtask bench instructions`: how many instructions the hot paths of `mesh-core` take, as
//! valgrind's callgrind counts them. Unlike time that is the same on a busy machine, so that a
//! change shows; the counts that are expected are kept in `docs/performance/instructions.json`.

mod paths;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_lab::programs;
use serde_json::{Value, json};

use crate::exec;

/// Of the counts that are expected.
const RECORD: &str = "docs/performance/instructions.json";

/// More than the record by this share is a regression; hashes have random seeds, and a copy
/// of memory depends on the processor.
const TOLERANCE: f64 = 0.1;

/// Each path is run this often, and once more that often: the difference leaves out what a
/// start takes.
const TIMES: u32 = 2_000;

/// What to do with the counts
#[derive(Args)]
pub(crate) struct InstructionsArgs {
    /// Keep the counts as those that are expected
    #[arg(long)]
    record: bool,
    /// Run one path so often, and count nothing: what callgrind is to look at
    #[arg(long, num_args = 2, value_names = ["PATH", "TIMES"], hide = true)]
    run: Vec<String>,
}

pub(crate) fn run(workspace: &Path, args: &InstructionsArgs) -> Result<()> {
    if let [path, times] = &args.run[..] {
        return paths::run(path, times.parse().context("how often")?);
    }
    programs::install(&[programs::VALGRIND])?;
    let record = workspace.join(RECORD);
    let counted = count_all()?;
    if args.record {
        let all = json!({ "rustc": rustc()?, "instructions": counted });
        fs::write(&record, format!("{all:#}\n")).context("writing the record")?;
        eprintln!("wrote {}", record.display());
        return Ok(());
    }
    let text = fs::read_to_string(&record).with_context(|| record.display().to_string())?;
    let expected: Value = serde_json::from_str(&text).context(RECORD)?;
    let mut worse = Vec::new();
    println!(
        "{:44}{:>12}{:>12}{:>8}",
        "instructions", "now", "record", "×"
    );
    for (path, now) in &counted {
        let then = expected["instructions"][path].as_u64().unwrap_or_default();
        let ratio = *now as f64 / then as f64;
        println!("{path:44}{now:>12}{then:>12}{ratio:>8.2}");
        if ratio > 1.0 + TOLERANCE {
            worse.push(path.as_str());
        }
    }
    let (ours, theirs) = (rustc()?, expected["rustc"].as_str().unwrap_or_default());
    if ours != theirs {
        println!("not compared: this is {ours}, and the record is of {theirs}");
        return Ok(());
    }
    ensure!(
        worse.is_empty(),
        "more than {:.0} % above {RECORD}: {}. If that is meant, record it with `cargo xtask \
         bench instructions --record`",
        TOLERANCE * 100.0,
        worse.join(", ")
    );
    Ok(())
}

/// Of each path.
fn count_all() -> Result<BTreeMap<String, u64>> {
    let own = std::env::current_exe()?;
    let mut counts = BTreeMap::new();
    for path in paths::NAMES {
        let once = count(&own, path, TIMES)?;
        let twice = count(&own, path, 2 * TIMES)?;
        let each = twice.saturating_sub(once) / u64::from(TIMES);
        counts.insert(path.to_owned(), each);
    }
    Ok(counts)
}

fn count(program: &PathBuf, path: &str, times: u32) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["bench", "instructions", "--run", path, &times.to_string()]);
    let output = valgrind.output().context("starting valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind: {said}");
    let count = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, count) = count.with_context(|| format!("valgrind told no count: {said}"))?;
    Ok(count.trim().parse()?)
}

fn rustc() -> Result<String> {
    let said = exec::read(Command::new("rustc").arg("--version"))?;
    Ok(said.trim().to_owned())
}
