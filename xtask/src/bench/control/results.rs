//! What was measured, as it is written and read again.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::super::spread::Spread;

/// All of it.
pub(super) struct Results {
    about: Value,
    runs: Vec<Value>,
}

impl Results {
    pub(super) fn new(about: Value) -> Self {
        Self {
            about,
            runs: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, run: Value) {
        self.runs.push(run);
    }

    /// What was weighed of a real agent, once.
    pub(super) fn set_agent(&mut self, agent: Value) {
        self.about["agent"] = agent;
    }

    pub(super) fn json(&self) -> String {
        format!("{:#}\n", json!({ "about": self.about, "runs": self.runs }))
    }

    pub(super) fn read(file: &Path) -> Result<Self> {
        let what = || format!("reading {}", file.display());
        let text = fs::read_to_string(file).with_context(what)?;
        let mut all: Value = serde_json::from_str(&text).with_context(what)?;
        let runs = all["runs"].as_array().cloned();
        Ok(Self {
            runs: runs.with_context(|| format!("{} has no `runs`", file.display()))?,
            about: all["about"].take(),
        })
    }

    pub(super) fn about(&self) -> &Value {
        &self.about
    }

    pub(super) fn reps(&self) -> usize {
        self.runs.len()
    }

    /// Of a number in every run, by its JSON pointer.
    pub(super) fn spread(&self, pointer: &str) -> Option<Spread> {
        let numbers = self.runs.iter().map(|run| run.pointer(pointer)?.as_f64());
        Spread::of(&numbers.collect::<Option<Vec<f64>>>()?)
    }
}
