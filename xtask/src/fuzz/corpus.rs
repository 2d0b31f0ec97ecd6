//! What is kept of what fuzzing finds out: few and small files that reach as much.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::engine::{Engine, files};

/// Bytes that one target's corpus may have in the repository, beside what was named.
const MAX_BYTES: u64 = 32 * 1024;
/// The same of one file.
const MAX_FILE: u64 = 2 * 1024;
/// Replaces a target's corpus by the fewest files that reach what it and the working corpus reach.
/// Those that somebody has named always stay: what it begins with, and what once made it fail.
pub(super) fn minimise(engine: &Engine, target: &str) -> Result<()> {
    let (kept, working) = (engine.kept(target), engine.working(target));
    let minimal = working.with_extension("minimal");
    if minimal.exists() {
        fs::remove_dir_all(&minimal)?;
    }
    fs::create_dir_all(&minimal)?;
    let mut command = engine.command(target);
    // What fails here has failed before, and was told then.
    let scratch = format!("-artifact_prefix={}.failed-", working.display());
    command
        .args(["-set_cover_merge=1", &scratch])
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
    let mut named = Vec::new();
    for path in files(&kept)? {
        if is_hash(&path) {
            fs::remove_file(&path)?;
        } else {
            named.push(fs::read(&path)?);
        }
    }
    let mut sized: Vec<_> = files(&minimal)?
        .into_iter()
        .map(|path| Ok((fs::metadata(&path)?.len(), path)))
        .collect::<Result<_>>()?;
    sized.sort();
    // By turns a long one, which goes deep, and a short one, which takes little.
    let (mut sized, mut bytes) = (VecDeque::from(sized), 0);
    for turn in 0.. {
        let next = match turn % 2 {
            0 => sized.pop_back(),
            _ => sized.pop_front(),
        };
        let Some((len, path)) = next else { break };
        let fits = len <= MAX_FILE && bytes + len <= MAX_BYTES;
        if !fits || named.contains(&fs::read(&path)?) {
            continue;
        }
        bytes += len;
        let name = path.file_name().context("a file without a name")?;
        fs::copy(&path, kept.join(name))?;
    }
    fs::remove_dir_all(&minimal)?;
    Ok(())
}

/// libFuzzer names files by the SHA-1 of what is in them.
fn is_hash(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.len() == 40 && name.iter().all(u8::is_ascii_hexdigit)
}
