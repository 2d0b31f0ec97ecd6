//! What tells two states of a file apart without reading it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and inode, length, times of change in nanoseconds.
pub(crate) type Marks = [i128; 5];

/// Those of the file that a path leads to; None if there is none.
pub(crate) fn marks(path: &Path) -> Option<Marks> {
    let m = fs::metadata(path).ok()?;
    let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    Some([
        m.dev().into(),
        m.ino().into(),
        m.len().into(),
        nanoseconds(m.mtime(), m.mtime_nsec()),
        nanoseconds(m.ctime(), m.ctime_nsec()),
    ])
}
