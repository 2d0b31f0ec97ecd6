//! What is kept of what fuzzing finds out: few and small files that reach as much.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::engine::{Engine, files};

/// Bytes that one target's corpus may have in the repository: beyond, the largest files stay out.
const MAX_BYTES: u64 = 40 * 1024;
/// How names of files begin that once made a target fail. They always stay.
const FINDING: &str = "finding-";

/// Replaces a target's corpus by the smallest one that reaches what it and the working corpus
/// reach.
pub(super) fn minimise(engine: &Engine, target: &str) -> Result<()> {
    let (kept, working) = (engine.kept(target), engine.working(target));
    let minimal = working.with_extension("minimal");
    if minimal.exists() {
        fs::remove_dir_all(&minimal)?;
    }
    fs::create_dir_all(&minimal)?;
    let mut command = engine.command(target);
    command
        .args(["-merge=1"])
        .arg(&minimal)
        .args([&kept, &working]);
    let output = command
        .output()
        .with_context(|| format!("merging {target}"))?;
    ensure!(
        output.status.success(),
        "minimising the corpus of {target}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let is_finding = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(FINDING.as_bytes())
    };
    for path in files(&kept)? {
        if !is_finding(&path) {
            fs::remove_file(&path)?;
        }
    }
    let mut sized: Vec<_> = files(&minimal)?
        .into_iter()
        .map(|path| Ok((fs::metadata(&path)?.len(), path)))
        .collect::<Result<_>>()?;
    sized.sort();
    let mut bytes = 0;
    for (len, path) in sized {
        bytes += len;
        if bytes > MAX_BYTES {
            break;
        }
        let name = path.file_name().context("a file without a name")?;
        fs::copy(&path, kept.join(name))?;
    }
    fs::remove_dir_all(&minimal)?;
    Ok(())
}
