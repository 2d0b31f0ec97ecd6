//! Where artefacts come from: an in-toto statement with SLSA's provenance (v1). It is not signed here:
//! whoever builds signs, with their own key.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::image::sha256;
use super::{Release, TARGET, build};
use crate::exec;

/// The statement for some artefacts, each with its SHA-256.
///
/// # Errors
/// If what was built with can't be asked.
pub(crate) fn statement(
    workspace: &Path,
    artefacts: &BTreeMap<String, String>,
    release: &Release,
) -> Result<Value> {
    let digest = |text: &str| json!({"sha256": text});
    let subjects: Vec<Value> = artefacts
        .iter()
        .map(|(name, hash)| json!({"name": name, "digest": digest(hash)}))
        .collect();
    let hash = |path: &str| anyhow::Ok(sha256(&std::fs::read(workspace.join(path))?));
    let rustc = exec::read(Command::new("rustc").current_dir(workspace).arg("-V"))?;
    Ok(json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": format!("{}/xtask/release", release.repository),
                "externalParameters": {
                    "source": release.repository,
                    "target": TARGET,
                    "profile": build::PROFILE,
                    "sourceDateEpoch": release.time_s,
                },
                "resolvedDependencies": [
                    {"uri": release.repository, "digest": {"gitCommit": release.commit}},
                    {"name": "Cargo.lock", "digest": digest(&hash("Cargo.lock")?)},
                    {"name": "target/bpf/mesh-ebpf.o", "digest": digest(&hash("target/bpf/mesh-ebpf.o")?)},
                    {"name": rustc.trim()},
                ],
            },
            "runDetails": {
                "builder": {"id": format!("{}/xtask", release.repository)},
            },
        },
    }))
}
