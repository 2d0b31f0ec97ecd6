//! What became of each case, as JUnit's XML has it and as a person reads it.

use std::fmt::Write;
use std::time::Duration;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// What was tried, on what, and what was seen.
    Failed(String),
    /// It was not run, and why.
    NotRun(String),
}

/// A case that is over.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) group: &'static str,
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

/// The report, for a file.
pub(super) fn xml(done: &[Done]) -> String {
    let count = |wanted: fn(&Outcome) -> bool| done.iter().filter(|d| wanted(&d.outcome)).count();
    let failures = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let skipped = count(|outcome| matches!(outcome, Outcome::NotRun(_)));
    let took: Duration = done.iter().map(|d| d.took).sum();
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n".to_owned();
    // Writing to a text can't fail.
    let _ = writeln!(
        text,
        "<testsuite name=\"k8s-test\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\" time=\"{:.3}\">",
        done.len(),
        took.as_secs_f64()
    );
    for Done {
        group,
        name,
        outcome,
        took,
    } in done
    {
        let head = format!(
            "<testcase classname=\"k8s-test.{group}\" name=\"{}\" time=\"{:.3}\"",
            escaped(name),
            took.as_secs_f64()
        );
        let _ = match outcome {
            Outcome::Passed => writeln!(text, "{head}/>"),
            Outcome::Failed(why) => {
                let first = why.lines().next().unwrap_or_default();
                let (first, all) = (escaped(first), escaped(why));
                writeln!(
                    text,
                    "{head}><failure message=\"{first}\">{all}</failure></testcase>"
                )
            }
            Outcome::NotRun(why) => writeln!(
                text,
                "{head}><skipped message=\"{}\"/></testcase>",
                escaped(why)
            ),
        };
    }
    text + "</testsuite>\n</testsuites>\n"
}

/// One line for a person.
pub(super) fn line(done: &Done) -> String {
    let Done { group, name, .. } = done;
    match &done.outcome {
        Outcome::Passed => format!("passed   {group}: {name} ({} s)", done.took.as_secs()),
        Outcome::Failed(why) => format!("FAILED   {group}: {name}: {why}"),
        Outcome::NotRun(why) => format!("not run  {group}: {name}: {why}"),
    }
}

/// Text as XML 1.0 can have it, in an attribute too.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            // Such as colours of a terminal: no reader of XML would take them.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(name: &'static str, outcome: Outcome) -> Done {
        Done {
            group: "policy",
            name,
            outcome,
            took: Duration::from_millis(1500),
        }
    }

    #[test]
    fn each_case_is_told_with_what_became_of_it() {
        let all = [
            done("a <b> & \"c\"", Outcome::Passed),
            done(
                "two",
                Outcome::Failed("it says <no>\nline \u{1b}[31mtwo".to_owned()),
            ),
            done("three", Outcome::NotRun("no cluster".to_owned())),
        ];
        assert_eq!(
            xml(&all),
            "\
<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<testsuites>
<testsuite name=\"k8s-test\" tests=\"3\" failures=\"1\" errors=\"0\" skipped=\"1\" time=\"4.500\">
<testcase classname=\"k8s-test.policy\" name=\"a &lt;b&gt; &amp; &quot;c&quot;\" time=\"1.500\"/>
<testcase classname=\"k8s-test.policy\" name=\"two\" time=\"1.500\"><failure message=\"it says &lt;no&gt;\">it says &lt;no&gt;&#10;line \u{fffd}[31mtwo</failure></testcase>
<testcase classname=\"k8s-test.policy\" name=\"three\" time=\"1.500\"><skipped message=\"no cluster\"/></testcase>
</testsuite>
</testsuites>
"
        );
        assert_eq!(line(&all[2]), "not run  policy: three: no cluster");
    }
}
