//! The table in `docs/FUZZING.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Facts;
use super::coverage::{Covered, Share};
use super::engine::{Run, files};

const DOCUMENT: &str = "docs/FUZZING.md";
const BEGIN: &str = "<!-- cargo xtask fuzz --coverage: begin -->\n";
const END: &str = "<!-- cargo xtask fuzz --coverage: end -->\n";
const HEAD: &str = "\
| target | reads | worded by | CPU minutes | executions | regions | lines | corpus |
|---|---|---|---:|---:|---:|---:|---:|
";

/// Writes the rows of the targets that were run; the others stay as they are.
pub(super) fn write(
    workspace: &Path,
    targets: &BTreeMap<String, Facts>,
    runs: &BTreeMap<String, Run>,
    covered: &BTreeMap<String, Covered>,
) -> Result<()> {
    let path = workspace.join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {DOCUMENT}"))?;
    let marked = || {
        let (before, rest) = text.split_once(BEGIN)?;
        let (table, after) = rest.split_once(END)?;
        Some((before, table, after))
    };
    let (before, table, after) = marked().with_context(|| format!("{DOCUMENT} has no markers"))?;
    let mut rows: BTreeMap<String, String> = table
        .lines()
        .skip(2)
        .filter_map(|row| Some((row.split('`').nth(1)?.to_owned(), format!("{row}\n"))))
        .collect();
    for (target, facts) in targets {
        let kept = files(&workspace.join("fuzz/corpus").join(target))?;
        let bytes: u64 = kept
            .iter()
            .map(|path| Ok(fs::metadata(path)?.len()))
            .sum::<Result<u64>>()?;
        let (run, covered) = (&runs[target], covered[target]);
        let effort = format!("{:.1} | {}", run.cpu_minutes, run.executions);
        // Nothing was fuzzed: what was the last time stays.
        let last = rows.get(target).and_then(|row| effort_of(row));
        let effort = last.filter(|_| run.executions == 0).unwrap_or(effort);
        let row = format!(
            "| `{target}` | {} | {} | {effort} | {} | {} | {} files, {} KiB |\n",
            facts.reads,
            facts.by,
            percent(covered.regions),
            percent(covered.lines),
            kept.len(),
            bytes.div_ceil(1024),
        );
        rows.insert(target.clone(), row);
    }
    let known = super::targets(workspace, None)?;
    rows.retain(|target, _| known.contains_key(target));
    let rows: String = rows.into_values().collect();
    fs::write(&path, format!("{before}{BEGIN}{HEAD}{rows}{END}{after}"))
        .with_context(|| format!("writing {DOCUMENT}"))
}

/// CPU minutes and executions in a row.
fn effort_of(row: &str) -> Option<String> {
    let cells: Vec<&str> = row.split(" | ").collect();
    Some(format!("{} | {}", cells.get(3)?, cells.get(4)?))
}

fn percent(share: Share) -> String {
    let Share { reached, all } = share;
    let percent = (reached * 100).checked_div(all).unwrap_or(0);
    format!("{reached} of {all} ({percent} %)")
}
