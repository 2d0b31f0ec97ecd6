//! Aggressors: what a tenant can do to hurt its neighbours on a node, bounded, with the load
//! that it achieved. Tests ask what it meets and that a [`Victim`] does not notice; the
//! benchmark measures how much it does.
//!
//! The loads are made by `mesh-lab-load`, which runs in a pod as any app does; what befalls a
//! worker itself is in [`fault`], what makes work for control and supervisors in [`churn`].

pub mod churn;
pub mod fault;
mod load;
pub mod stage;
mod victim;

pub use load::{Achieved, Door, Load, Running, Site};
pub use victim::{Calls, Measured, Victim};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::app::App;

/// The last line of what a load has printed, which tells of it.
fn told(app: &App) -> Result<Value> {
    let said = app.stdout();
    let last = said.lines().next_back();
    let last = last.with_context(|| format!("it said nothing but {:?}", app.stderr()))?;
    serde_json::from_str(last).with_context(|| format!("it said {said:?}"))
}

fn number(of: &Value, name: &str) -> Result<u64> {
    let value = of[name].as_u64();
    value.with_context(|| format!("no {name} in {of}"))
}

fn seconds(of: &Value) -> Result<f64> {
    let value = of["seconds"].as_f64();
    value.with_context(|| format!("no seconds in {of}"))
}
