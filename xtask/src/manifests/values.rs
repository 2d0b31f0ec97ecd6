//! The values of the chart: what `values.yaml` says of each, and whether schema and templates know it.

use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A value of the chart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Documented {
    /// Its path, as in `--set`.
    pub(super) path: String,
    /// What it is for: the comment above it, on one line.
    pub(super) meaning: String,
    /// Its default, as JSON.
    pub(super) default: String,
}

/// The values in `values.yaml`, in its order. Each has a comment right above; what has none holds others
/// that do.
///
/// # Errors
/// A file that can't be read, or a value without a comment.
pub(super) fn read(text: &str) -> Result<Vec<Documented>> {
    let defaults: Value = serde_yaml_ng::from_str(text).context("values.yaml")?;
    let mut values: Vec<Documented> = Vec::new();
    // The keys that lead to a line, by their depth.
    let mut path: Vec<&str> = Vec::new();
    let mut groups: Vec<String> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines() {
        let words = line.trim_start();
        let depth = (line.len() - words.len()) / 2;
        if let Some(said) = words.strip_prefix('#') {
            comment.push(said.trim());
            continue;
        }
        let said = std::mem::take(&mut comment).join(" ");
        let Some((key, _)) = words.split_once(':') else {
            continue;
        };
        path.truncate(depth);
        path.push(key);
        let joined = path.join(".");
        let inside = |value: &Documented| joined.starts_with(&format!("{}.", value.path));
        if words.starts_with('-') || values.iter().any(inside) {
            continue;
        }
        let default = path.iter().try_fold(&defaults, |value, key| value.get(key));
        let default = default.with_context(|| format!("{joined}: no such value"))?;
        // What stands above a group is said of the group.
        if default.as_object().is_some_and(|group| !group.is_empty()) && !is_whole(&joined) {
            groups.push(joined);
            continue;
        }
        ensure!(!said.is_empty(), "{joined} has no comment in values.yaml");
        values.push(Documented {
            path: joined,
            meaning: said,
            default: default.to_string(),
        });
    }
    for group in groups {
        let prefix = format!("{group}.");
        if !values.iter().any(|value| value.path.starts_with(&prefix)) {
            bail!("{group} holds nothing");
        }
    }
    Ok(values)
}

/// Objects that templates pass on as they are.
fn is_whole(path: &str) -> bool {
    path.ends_with(".resources") || path.ends_with(".nodeSelector")
}

/// What is wrong between the values, the schema and the templates.
pub(super) fn mistakes(values: &[Documented], schema: &Value, templates: &str) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut known = Vec::new();
    leaves(schema, "", &mut known);
    for value in values {
        let path = &value.path;
        if !known.contains(path) {
            mistakes.push(format!("{path} is not in values.schema.json"));
        }
        let used = format!(".Values.{path}");
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '.');
        if !templates.split(&used).skip(1).any(ends) {
            mistakes.push(format!("{path} is used by no template"));
        }
    }
    for path in known {
        if !values.iter().any(|value| value.path == path) {
            mistakes.push(format!("{path} is in values.schema.json alone"));
        }
    }
    mistakes
}

/// Paths of what a schema describes, but for what is inside of it.
fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
    match schema["properties"].as_object() {
        Some(properties) => {
            for (key, schema) in properties {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                leaves(schema, &path, found);
            }
        }
        None => found.push(path.to_owned()),
    }
}

/// The chart's README: every value with its default and what it is for.
pub(super) fn readme(values: &[Documented]) -> String {
    let mut text = "\
# The chart of Nodemesh

How it is installed, upgraded and taken off: [docs/OPERATING.md](../../../docs/OPERATING.md). This page
is made of `values.yaml` by `cargo xtask manifests`.

| value | default | what it is |
|---|---|---|
"
    .to_owned();
    for Documented {
        path,
        meaning,
        default,
    } in values
    {
        let meaning = meaning.replace('|', "\\|");
        // Writing to a text can't fail.
        let _ = writeln!(text, "| `{path}` | `{default}` | {meaning} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "\
# Said of the file.

# The first,
# on two lines.
first: 1
group:
  # The second.
  second: [a]
  # Whole.
  resources:
    limits: {cpu: 1}
";

    #[test]
    fn comments_are_of_the_value_below() {
        let values = read(TEXT).unwrap();
        let shown: Vec<_> = values
            .iter()
            .map(|v| (v.path.as_str(), v.meaning.as_str(), v.default.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("first", "The first, on two lines.", "1"),
                ("group.second", "The second.", "[\"a\"]"),
                ("group.resources", "Whole.", "{\"limits\":{\"cpu\":1}}"),
            ]
        );
        let without = TEXT.replace("  # The second.\n", "");
        let error = read(&without).unwrap_err().to_string();
        assert_eq!(error, "group.second has no comment in values.yaml");
    }

    #[test]
    fn what_one_of_the_three_lacks_is_told() {
        let values = read(TEXT).unwrap();
        let schema = |second: &str| {
            json!({"properties": {
                "first": {},
                "group": {"properties": {second: {}, "resources": {"type": "object"}}},
            }})
        };
        let templates =
            "{{ .Values.first }} {{ .Values.group.second }} {{ .Values.group.resources }}";
        assert_eq!(
            mistakes(&values, &schema("second"), templates),
            Vec::<String>::new()
        );
        assert_eq!(
            mistakes(
                &values,
                &schema("third"),
                &templates.replace("first", "firstly")
            ),
            [
                "first is used by no template",
                "group.second is not in values.schema.json",
                "group.third is in values.schema.json alone",
            ]
        );
    }
}
