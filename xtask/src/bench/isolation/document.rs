//! The measured part of `docs/ISOLATION.md`, and its plots.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::super::spread::Spread;
use super::super::{machine, marks};
use super::causes::Causes;
use super::columns::Kind;
use super::results::{AIM, Results};
use super::{plot, sweep};

/// Puts it between the document's marks.
pub(super) fn write(workspace: &Path, results: &Results) -> Result<()> {
    let document = workspace.join("docs/ISOLATION.md");
    let mut complaints = Vec::new();
    let made = |text: &str| {
        let causes = Causes::of(text);
        complaints = causes.complaints(results);
        measured(results, &causes)
    };
    let folder = workspace.join("docs/isolation");
    marks::write(&document, made, &folder, &files(results))?;
    for complaint in complaints {
        eprintln!("{complaint}");
    }
    Ok(())
}

/// What goes beside the document.
fn files(results: &Results) -> Vec<(String, String)> {
    let plots = results.loads().into_iter();
    let plots = plots.map(|load| (plot_of(load), plot::svg(results, load)));
    let swept = (!results.sweep().is_empty()).then(|| (sweep::PLOT.into(), sweep::svg(results)));
    let texts = results.about()["haproxy"].as_array().into_iter().flatten();
    let texts = texts.filter_map(Value::as_str).zip(["client", "server"]);
    let haproxies = texts.map(|(text, side)| (format!("haproxy-{side}.cfg"), text.to_owned()));
    let json = ("isolation.json".to_owned(), results.json());
    plots.chain(swept).chain(haproxies).chain([json]).collect()
}

fn plot_of(load: f64) -> String {
    format!("p99-{load}.svg")
}

fn measured(results: &Results, causes: &Causes) -> String {
    let mut text = conditions(results);
    for load in results.loads() {
        let _ = write!(
            text,
            "\n### All aggressors, at {load} % of the victim's most\n\n{}\n\n\
             ![p99 as a multiple of alone, {load} % load](isolation/{})\n\n{}",
            verdict(results, load),
            plot_of(load),
            table(results, causes, load)
        );
    }
    if !results.sweep().is_empty() {
        text.push_str(&sweep::section(results));
    }
    text
}

fn conditions(results: &Results) -> String {
    let about = results.about();
    let text = |name: &str| about[name].as_str().unwrap_or("?").to_owned();
    let scheduler = &about["scheduler"];
    let slice = |name: &str| match scheduler[name].as_f64() {
        // Kernels before 6.12 don't tell.
        Some(us) if us > 0.0 => format!("{} ms", us / 1e3),
        _ => "a length unknown".to_owned(),
    };
    let built: Vec<&str> = scheduler["built_with"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let yes = |value: &Value, yes, no| if *value == true { yes } else { no };
    let mut told = format!(
        "{}; cpu by {}, memory by {}. Scheduler: slices of {}, a \
         worker's of {}, autogroups {}, `{}`. {} runs of {} s each, and {} s after the aggressor's end. The victim's most, \
         in requests a second:",
        machine::text(about),
        text("cpu_controller"),
        text("memory_controller"),
        slice("slice_us"),
        slice("worker_slice_us"),
        yes(&scheduler["autogroup"], "on", "off"),
        built.join(" "),
        about["reps"],
        about["seconds"],
        about["recovery_seconds"],
    );
    for kind in results.columns() {
        let most = &about["most_requests_per_second"][kind.name()];
        let _ = write!(told, " {} {most},", kind.name());
    }
    told.pop();
    told.push_str(".\n");
    if let Some(version) = about["ztunnel"].as_str() {
        let _ = writeln!(told, "The ztunnel: `{version}`.");
    }
    told
}

fn table(results: &Results, causes: &Causes, load: f64) -> String {
    let mut text = "| aggressor | column | achieved a second | p50 × | p99 × (least – most) | \
                    p99.9 × | p99 µs | errors | goodput | recovery ms | within the aim |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for case in results.cases() {
        for kind in results.columns() {
            text.push_str(&row(results, causes, case, kind, load).unwrap_or_default());
        }
    }
    text
}

fn row(results: &Results, causes: &Causes, case: &str, kind: Kind, load: f64) -> Option<String> {
    let cell = results.cell(case, kind, load)?;
    let alone = results.cell("alone", kind, load)?;
    let median = |s: Option<Spread>| s.map_or(0.0, |s| s.median);
    let times = |name: &str| median(cell.spread(name)) / median(alone.spread(name)).max(1.0);
    let p99 = cell.p99_ratio()?;
    Some(format!(
        "| {case} | {} | {} | {:.2} | {} | {:.2} | {:.0} | {} | {:.1} % | {} | {} |\n",
        kind.name(),
        cell.achieved(),
        times("p50_us"),
        p99.text(),
        times("p999_us"),
        median(cell.spread("p99_us")),
        cell.errors(),
        median(cell.spread("goodput")) * 100.0,
        cell.recovery_ms(),
        causes.mark(cell.is_good(), case, kind),
    ))
}

/// How many cases are within the aim, of each column.
fn verdict(results: &Results, load: f64) -> String {
    let mut told = format!("Within the aim (p99 at most {AIM} × alone, no error):");
    for kind in results.columns() {
        let cases = results.cases().into_iter().filter(|case| *case != "alone");
        let cells: Vec<_> = cases
            .filter_map(|case| results.cell(case, kind, load))
            .collect();
        let within = cells.iter().filter(|cell| cell.is_good()).count();
        let _ = write!(told, " {} {within} of {},", kind.name(), cells.len());
    }
    told.pop();
    told.push('.');
    told
}

/// For people who watch it run.
pub(super) fn text(results: &Results) -> String {
    let mut text = format!("{:32}{:>16}  p99 µs, × alone, errors\n", "", "");
    let loads = match results.sweep() {
        none if none.is_empty() => results.loads(),
        all => all,
    };
    for load in loads {
        let _ = writeln!(text, "at {load} %");
        for case in results.cases() {
            for kind in results.columns() {
                let Some(cell) = results.cell(case, kind, load) else {
                    continue;
                };
                let (p99, ratio) = (cell.spread("p99_us"), cell.p99_ratio());
                let median = |s: Option<Spread>| s.map_or(0.0, |s| s.median);
                let _ = writeln!(
                    text,
                    "{case:32}{:>16}  {:8.0} {:8.2} {:6}  {}",
                    kind.name(),
                    median(p99),
                    median(ratio),
                    cell.errors(),
                    cell.achieved(),
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_was_measured() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let document = std::fs::read_to_string(docs.join("ISOLATION.md")).unwrap();
        let folder = docs.join("isolation");
        let results = Results::read(&folder.join("isolation.json")).unwrap();
        marks::assert_unchanged(
            &document,
            &measured(&results, &Causes::of(&document)),
            &folder,
            &files(&results),
            "cargo xtask bench isolation --render docs/isolation/isolation.json",
        );
    }
}
