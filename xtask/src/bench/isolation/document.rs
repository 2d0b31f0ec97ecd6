//! The measured part of `docs/ISOLATION.md`, and its plots.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::columns::Kind;
use super::plot::{self, AIM};
use super::results::{Results, Spread};

const BEGIN: &str = "<!-- begin: measured -->\n";
const END: &str = "<!-- end: measured -->";

/// Puts it between the document's marks.
pub(super) fn write(workspace: &Path, results: &Results) -> Result<()> {
    let folder = workspace.join("docs/isolation");
    fs::create_dir_all(&folder)?;
    let mut plots = String::new();
    for load in results.loads() {
        let name = format!("p99-{load}.svg");
        fs::write(folder.join(&name), plot::svg(results, load))?;
        let _ = writeln!(
            plots,
            "![p99 as a multiple of alone, {load} % load](isolation/{name})\n"
        );
    }
    fs::write(folder.join("isolation.json"), results.json())?;
    for (text, side) in configurations(results)
        .into_iter()
        .zip(["client", "server"])
    {
        fs::write(folder.join(format!("haproxy-{side}.cfg")), text)?;
    }
    let path = workspace.join("docs/ISOLATION.md");
    let document = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let marks = document.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) =
        marks.with_context(|| format!("{} lacks the marks {BEGIN:?}, {END:?}", path.display()))?;
    let measured = format!("{}\n{plots}{}", machine(results), tables(results));
    fs::write(&path, format!("{before}{BEGIN}{measured}{END}{after}"))?;
    eprintln!("wrote {} and {}", path.display(), folder.display());
    Ok(())
}

/// Of the shared proxies, the clients' first.
fn configurations(results: &Results) -> Vec<String> {
    let texts = results.about()["haproxy"].as_array().cloned();
    let texts = texts.unwrap_or_default();
    let texts = texts.iter().filter_map(|text| text.as_str());
    texts.map(str::to_owned).collect()
}

fn machine(results: &Results) -> String {
    let about = results.about();
    let text = |name: &str| about[name].as_str().unwrap_or("?").to_owned();
    let mut told = format!(
        "Linux {}, {} × {}; cpu by {}, memory by {}; {} runs of {} s each. The victim's most, in \
         requests a second:",
        text("kernel"),
        about["processors"],
        text("processor"),
        text("cpu_controller"),
        text("memory_controller"),
        about["reps"],
        about["seconds"],
    );
    for kind in Kind::ALL {
        let most = &about["most_requests_per_second"][kind.name()];
        let _ = write!(told, " {} {most},", kind.name());
    }
    told.pop();
    told.push_str(".\n");
    told
}

fn tables(results: &Results) -> String {
    let mut text = String::new();
    for load in results.loads() {
        let _ = writeln!(
            text,
            "At {load} % of its most. {}\n",
            verdict(results, load)
        );
        text.push_str(
            "| aggressor | column | achieved a second | p50 × | p99 × (least – most) | p99.9 × | \
             p99 µs | errors | goodput | recovery ms |\n|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for case in results.cases() {
            for kind in Kind::ALL {
                text.push_str(&row(results, case, kind, load).unwrap_or_default());
            }
        }
        text.push('\n');
    }
    text
}

fn row(results: &Results, case: &str, kind: Kind, load: f64) -> Option<String> {
    let cell = results.cell(case, kind, load)?;
    let alone = results.cell("alone", kind, load)?;
    let median = |s: Option<Spread>| s.map_or(0.0, |s| s.median);
    let times = |name: &str| median(cell.spread(name)) / median(alone.spread(name)).max(1.0);
    let p99 = cell.p99_ratio()?;
    Some(format!(
        "| {case} | {} | {} | {:.2} | {:.2} ({:.2} – {:.2}) | {:.2} | {:.0} | {} | {:.1} % | {} |\n",
        kind.name(),
        cell.achieved(),
        times("p50_us"),
        p99.median,
        p99.least,
        p99.most,
        times("p999_us"),
        median(cell.spread("p99_us")),
        cell.errors(),
        median(cell.spread("goodput")) * 100.0,
        cell.recovery_ms(),
    ))
}

/// How many cases are within the aim, of each column.
fn verdict(results: &Results, load: f64) -> String {
    let mut told = format!("Within the aim (p99 at most {AIM} × alone, no error):");
    for kind in Kind::ALL {
        let cases = results.cases();
        let cells = cases.iter().filter(|case| **case != "alone");
        let cells: Vec<_> = cells
            .filter_map(|case| results.cell(case, kind, load))
            .collect();
        let within = cells.iter().filter(|cell| {
            cell.errors() == 0 && cell.p99_ratio().is_some_and(|ratio| ratio.median <= AIM)
        });
        let _ = write!(
            told,
            " {} {} of {},",
            kind.name(),
            within.count(),
            cells.len()
        );
    }
    told.pop();
    told.push('.');
    told
}
