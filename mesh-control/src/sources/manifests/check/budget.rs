//! Budgets: each field in its range, and no budget that says nothing.

use mesh_core::budget::FIELDS;

use super::policy::Notes;
use crate::sources::manifests::locate::steps;
use crate::sources::manifests::schema::budget::WorkerBudget;

pub(super) fn check(spec: &WorkerBudget, notes: &mut Notes<'_>) {
    let values = spec.fields().values();
    if values.iter().all(Option::is_none) {
        let names: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
        let what = format!(
            "says nothing: give at least one of {}; defaults hold for the rest",
            names.join(", ")
        );
        notes.note(&steps!["spec"], what);
    }
    for (field, value) in FIELDS.iter().zip(values) {
        let Some(value) = value.filter(|value| !field.takes(*value)) else {
            continue;
        };
        let none = match field.takes_none() {
            true => ", or 0 for no limit",
            false => "",
        };
        let what = format!("{value} is not from {} to {}{none}", field.low, field.high);
        notes.note(&steps!["spec", field.name], what);
    }
}
