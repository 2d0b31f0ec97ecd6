//! Why rows miss the aim: a table that people write, outside of the document's marks.

use super::columns::Kind;
use super::results::Results;

/// The heading that the table stands under, and where links find it.
const HEADING: &str = "## Why rows miss the aim";
const ANCHOR: &str = "#why-rows-miss-the-aim";

/// Aggressors and columns that a sentence explains.
pub(super) struct Causes(Vec<[String; 2]>);

impl Causes {
    /// Reads `| aggressor; aggressor | column; column | cause |`.
    pub(super) fn of(document: &str) -> Self {
        let lines = document.lines().skip_while(|line| *line != HEADING).skip(1);
        let lines = lines.take_while(|line| !line.starts_with("## "));
        let rows = lines.filter_map(|line| {
            let cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|');
            let cells: Vec<&str> = cells.map(str::trim).collect();
            let [cases, columns, cause] = cells[..] else {
                return None;
            };
            (!cause.is_empty()).then_some((cases, columns))
        });
        let pairs = rows.skip(2).flat_map(|(cases, columns)| {
            let columns = columns.split("; ");
            columns.flat_map(|column| {
                let cases = cases.split("; ");
                cases.map(|case| [case.to_owned(), column.to_owned()])
            })
        });
        Self(pairs.collect())
    }

    fn explain(&self, case: &str, kind: Kind) -> bool {
        self.0.iter().any(|[c, k]| c == case && k == kind.name())
    }

    /// What the table says of a row. A shared proxy's misses are no news.
    pub(super) fn mark(&self, good: bool, case: &str, kind: Kind) -> String {
        match (good, kind) {
            (true, _) => "yes".to_owned(),
            _ if self.explain(case, kind) => format!("no: [why]({ANCHOR})"),
            (_, Kind::Nodemesh) => "no, and not explained".to_owned(),
            _ => "no".to_owned(),
        }
    }

    /// What doesn't fit the results: rows of Nodemesh that miss the aim without a cause, and
    /// causes of what misses nothing.
    pub(super) fn complaints(&self, results: &Results) -> Vec<String> {
        let mut told = Vec::new();
        let good = |case: &str, kind: Kind| {
            let loads = results.loads().into_iter();
            let mut cells = loads.filter_map(|load| results.cell(case, kind, load));
            cells.all(|cell| cell.is_good())
        };
        for case in results.cases() {
            if !good(case, Kind::Nodemesh) && !self.explain(case, Kind::Nodemesh) {
                told.push(format!("no cause is given for {case}"));
            }
        }
        for [case, column] in &self.0 {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == column);
            if kind.is_none_or(|kind| good(case, kind)) {
                told.push(format!(
                    "a cause is given for {case} in {column}, which misses nothing"
                ));
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
## Why rows miss the aim
Text.

| aggressor | column | cause |
|---|---|---|
| churn, fast; bulk | Nodemesh; ztunnel | Because. |
| idle | Nodemesh | |

## The aggressors
| spins | Nodemesh | Another table. |
";

    #[test]
    fn causes_are_those_of_the_table_under_the_heading() {
        let causes = Causes::of(DOCUMENT);
        let why = format!("no: [why]({ANCHOR})");
        for (case, kind, mark) in [
            ("churn, fast", Kind::Nodemesh, why.as_str()),
            ("bulk", Kind::Ztunnel, &why),
            ("bulk", Kind::SharedProxy, "no"),
            ("idle", Kind::Nodemesh, "no, and not explained"),
            ("spins", Kind::Nodemesh, "no, and not explained"),
        ] {
            assert_eq!(causes.mark(false, case, kind), mark, "{case}");
        }
        assert_eq!(causes.mark(true, "bulk", Kind::Nodemesh), "yes");
    }
}
