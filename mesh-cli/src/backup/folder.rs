//! The manifests of a folder: saved as they are written, comments and all, and put back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Plan;

type Files = BTreeMap<String, String>;

/// The files that `mesh-control` reads there.
pub(super) fn save(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| is_manifest(name) && path.is_file()) else {
            continue;
        };
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        files.insert(name.to_owned(), text);
    }
    Ok(files)
}

fn is_manifest(name: &str) -> bool {
    let known = [".yaml", ".yml", ".json"];
    !name.starts_with('.') && !name.contains('/') && known.iter().any(|end| name.ends_with(end))
}

/// What it takes to have these files there.
pub(super) fn plan(there: &Files, wanted: &Files) -> Plan {
    let mut plan = Plan::default();
    for (name, text) in wanted {
        match there.get(name) {
            None => plan.create.push(name.clone()),
            Some(same) if same == text => plan.same += 1,
            Some(_) => plan.change.push(name.clone()),
        }
    }
    let extra = there.keys().filter(|name| !wanted.contains_key(*name));
    plan.extra.extend(extra.cloned());
    plan
}

/// Puts the files there. All are written under hidden names first, so that they take their places
/// within the time between two looks of `mesh-control`.
pub(super) fn restore(folder: &Path, wanted: &Files, plan: &Plan, prune: bool) -> Result<()> {
    for name in wanted.keys() {
        ensure!(
            is_manifest(name),
            "{name:?} is no name of a manifest: nothing was changed"
        );
    }
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let changed = || plan.create.iter().chain(&plan.change);
    let draft = |name: &str| folder.join(format!(".{name}.restored"));
    for name in changed() {
        let path = draft(name);
        fs::write(&path, &wanted[name]).with_context(|| format!("writing {}", path.display()))?;
    }
    for name in changed() {
        let path = folder.join(name);
        fs::rename(draft(name), &path).with_context(|| format!("writing {}", path.display()))?;
    }
    for name in plan.extra.iter().filter(|_| prune) {
        let path = folder.join(name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}
