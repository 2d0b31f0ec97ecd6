//! The measured part of `docs/ISOLATION.md`, and its plots.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::causes::Causes;
use super::columns::Kind;
use super::results::{AIM, Results, Spread};
use super::{plot, sweep};

const BEGIN: &str = "<!-- begin: measured -->\n";
const END: &str = "<!-- end: measured -->";

/// Puts it between the document's marks.
pub(super) fn write(workspace: &Path, results: &Results) -> Result<()> {
    let folder = workspace.join("docs/isolation");
    fs::create_dir_all(&folder)?;
    for (name, content) in files(results) {
        fs::write(folder.join(name), content)?;
    }
    let path = workspace.join("docs/ISOLATION.md");
    let document = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let [before, _, after] =
        parts(&document).with_context(|| format!("{} lacks its marks", path.display()))?;
    let causes = Causes::of(&document);
    let measured = measured(results, &causes);
    fs::write(&path, format!("{before}{BEGIN}{measured}{END}{after}"))?;
    eprintln!("wrote {} and {}", path.display(), folder.display());
    for complaint in causes.complaints(results) {
        eprintln!("{complaint}");
    }
    Ok(())
}

/// What is before, between and after the marks.
fn parts(document: &str) -> Option<[&str; 3]> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (between, after) = rest.split_once(END)?;
    Some([before, between, after])
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
    let mut text = machine(results);
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

fn machine(results: &Results) -> String {
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
        "Linux {}, {} × {}{}; cpu by {}, memory by {}. Scheduler: slices of {}, a \
         worker's of {}, autogroups {}, `{}`. {} runs of {} s each, and {} s after the aggressor's end. The victim's most, \
         in requests a second:",
        text("kernel"),
        about["processors"],
        text("processor"),
        yes(&about["virtual_machine"], " of a virtual machine", ""),
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

    /// The numbers of the document can't be changed but by way of the file they come from.
    #[test]
    fn the_document_says_what_was_measured() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let document = fs::read_to_string(docs.join("ISOLATION.md")).unwrap();
        let [_, between, _] = parts(&document).unwrap();
        let file = docs.join("isolation/isolation.json");
        if !file.exists() {
            assert_eq!(between, "Not measured yet.\n");
            return;
        }
        let results = Results::read(&file).unwrap();
        let again = "run `cargo xtask bench isolation --render docs/isolation/isolation.json`";
        let is = |made: &str, stands: &str| made == stands;
        assert!(
            is(&measured(&results, &Causes::of(&document)), between),
            "{again}"
        );
        for (name, content) in files(&results) {
            let stands = fs::read_to_string(docs.join("isolation").join(&name)).unwrap();
            assert!(is(&content, &stands), "{name}: {again}");
        }
    }
}
