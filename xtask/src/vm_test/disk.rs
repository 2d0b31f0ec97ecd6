//! A disk for a guest: what it has there is there after a boot.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::exec;

/// Its size, in bytes. The file has holes where nothing was written.
const SIZE: u64 = 1024 * 1024 * 1024;

/// Makes an empty one, as a file with a file system in it.
///
/// # Errors
/// If it can't be written, or with the words of `mke2fs`.
pub(super) fn make(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.set_len(SIZE)?;
    let mut make = Command::new("mke2fs");
    exec::read(make.args(["-q", "-F", "-t", "ext4"]).arg(path)).map(drop)
}
