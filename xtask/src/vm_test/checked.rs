//! What `mesh-agent check` said on each kernel, side by side.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

/// Answers by kernel, in the order of the kernels.
pub(super) struct Checked {
    answers: Vec<(String, Value)>,
}

impl Checked {
    /// From the guests' JSON; what is none is left out.
    pub(super) fn new<'a>(said: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let answers = said.filter_map(|(release, text)| {
            let value = serde_json::from_str(text).ok()?;
            Some((release.to_owned(), value))
        });
        Self {
            answers: answers.collect(),
        }
    }

    /// Instructions by program and kernel, and what of the features not every kernel has.
    pub(super) fn markdown(&self) -> String {
        let Some((_, first)) = self.answers.first() else {
            return String::new();
        };
        let mut text = "\n| program | instructions |".to_owned();
        for (release, _) in &self.answers {
            let _ = write!(text, " verified on {release} | jited bytes |");
        }
        text.push_str("\n|---|---:|");
        text.push_str(&"---:|---:|".repeat(self.answers.len()));
        text.push('\n');
        for program in array(&first["programs"]["programs"]) {
            let _ = write!(
                text,
                "| `{}` | {} |",
                word(&program["name"]),
                program["instructions"]
            );
            for (_, answer) in &self.answers {
                let here = array(&answer["programs"]["programs"]);
                let here = here.iter().find(|p| p["name"] == program["name"]);
                let number = |key: &str| here.map(|p| p[key].to_string()).unwrap_or_default();
                let _ = write!(
                    text,
                    " {} | {} |",
                    number("verified_instructions"),
                    number("jited_bytes")
                );
            }
            text.push('\n');
        }
        text.push_str(&self.features());
        text
    }

    fn features(&self) -> String {
        let mut by_name: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for (_, answer) in &self.answers {
            for feature in array(&answer["features"]) {
                let present = feature["lack"].is_null();
                by_name
                    .entry(word(&feature["name"]))
                    .or_default()
                    .push(present);
            }
        }
        by_name.retain(|_, present| !present.iter().all(|present| *present));
        if by_name.is_empty() {
            return String::new();
        }
        let releases: Vec<&str> = self.answers.iter().map(|(r, _)| r.as_str()).collect();
        let mut text = format!(
            "\n| not on every kernel | {} |\n|---|",
            releases.join(" | ")
        );
        text.push_str(&"---|".repeat(releases.len()));
        text.push('\n');
        for (name, present) in by_name {
            let words = present.iter().map(|p| if *p { "yes" } else { "no" });
            let _ = writeln!(
                text,
                "| {name} | {} |",
                words.collect::<Vec<_>>().join(" | ")
            );
        }
        text
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
