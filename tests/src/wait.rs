//! Waiting for a condition with a time-out.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a condition is waited for when a test says nothing else.
pub const PATIENCE: Duration = Duration::from_secs(10);

const INTERVAL: Duration = Duration::from_millis(3);

/// Environment variable by which all waits are multiplied: an emulated machine is slow.
pub const PATIENCE_FACTOR: &str = "NODEMESH_PATIENCE_FACTOR";

fn patience_factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let said = std::env::var(PATIENCE_FACTOR).ok();
        said.and_then(|factor| factor.parse().ok()).unwrap_or(1)
    })
}

/// As long as this on a machine like any, longer on an emulated one.
#[must_use]
pub fn scaled(time: Duration) -> Duration {
    time * patience_factor()
}

/// Asks `condition` until it gives a value.
///
/// # Errors
/// When `timeout` passes first: the message names `what` and the last error, if `condition`
/// gave one. An error alone does not end the wait.
pub fn until<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let timeout = scaled(timeout);
    let deadline = Instant::now() + timeout;
    loop {
        let last = match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            let late = format!("waited {timeout:?} in vain for {what}");
            return match last {
                Some(error) => Err(error.context(late)),
                None => bail!(late),
            };
        }
        thread::sleep(INTERVAL);
    }
}

/// Like [`until`] for a condition that is or isn't met.
///
/// # Errors
/// When `timeout` passes first.
pub fn until_true(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, timeout, || Ok(condition()?.then_some(())))
}

/// Waits until the file has a line that contains `needle`, and returns that line.
///
/// # Errors
/// When `timeout` passes first: the message ends with the file's last lines.
pub fn line_in_file(path: &Path, needle: &str, timeout: Duration) -> Result<String> {
    let what = format!("a line with {needle:?} in {}", path.display());
    until(&what, timeout, || {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        Ok(text
            .lines()
            .find(|line| line.contains(needle))
            .map(ToOwned::to_owned))
    })
    .with_context(|| format!("the file ends with:\n{}", tail(path, 10)))
}

/// The last `lines` lines of a file, or why it can't be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Err(error) => format!("({}: {error})", path.display()),
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
    }
}
