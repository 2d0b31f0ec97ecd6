//! Archives that depend on nothing but what is in them: sorted, of one time, owned by root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;

/// A file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Its permission bits.
    pub(crate) mode: u32,
    /// What is in it.
    pub(crate) content: Vec<u8>,
}

impl File {
    /// A file that anybody may read.
    pub(crate) fn text(content: impl Into<Vec<u8>>) -> Self {
        Self {
            mode: 0o644,
            content: content.into(),
        }
    }

    /// A file that anybody may execute.
    pub(crate) fn program(content: Vec<u8>) -> Self {
        Self {
            mode: 0o755,
            content,
        }
    }
}

/// Files by their path from the archive's root, without a leading slash.
pub(crate) type Files = BTreeMap<String, File>;

const BLOCK: usize = 512;
const FILE: u8 = b'0';
const FOLDER: u8 = b'5';
/// Longest path that a header takes without a prefix.
const MAX_PATH: usize = 100;

/// The files as a POSIX archive (`ustar`), each with the folders that it needs, all of `time_s` (seconds
/// since the epoch) and root's.
///
/// # Errors
/// A path that the format has no room for.
pub(crate) fn archive(files: &Files, time_s: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut folders = BTreeSet::new();
    for (path, file) in files {
        for (end, _) in path.match_indices('/') {
            if folders.insert(&path[..end]) {
                let header = header(&path[..=end], 0o755, 0, FOLDER, time_s)?;
                bytes.extend(header);
            }
        }
        bytes.extend(header(path, file.mode, file.content.len(), FILE, time_s)?);
        bytes.extend(&file.content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    Ok(bytes)
}

/// The same, compressed.
///
/// # Errors
/// As [`archive`].
pub(crate) fn gzipped(files: &Files, time_s: u64) -> Result<Vec<u8>> {
    // Neither a name nor a time is in its header.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&archive(files, time_s)?)?;
    Ok(encoder.finish()?)
}

fn header(path: &str, mode: u32, size: usize, kind: u8, time_s: u64) -> Result<[u8; BLOCK]> {
    ensure!(
        path.len() <= MAX_PATH,
        "{path:?} is longer than {MAX_PATH} bytes, the room that an archive has for a path"
    );
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, format!("{mode:07o}\0").as_bytes());
    // Owner and group: root.
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, octal(size.try_into()?, "size")?.as_bytes());
    put(136, octal(time_s, "time")?.as_bytes());
    // The sum is made with its own field blank.
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

fn octal(number: u64, what: &str) -> Result<String> {
    let text = format!("{number:011o}\0");
    let fits = (text.len() == 12).then_some(text);
    fits.with_context(|| format!("a {what} of {number} is more than an archive has room for"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn files() -> Files {
        let program = File::program(vec![7; 1000]);
        let text = File::text("words\n");
        Files::from([
            ("usr/bin/program".to_owned(), program),
            ("usr/share/text".to_owned(), text),
        ])
    }

    /// As somebody else's reader sees it.
    #[test]
    fn tar_lists_what_was_put_in() {
        for (archive, options) in [
            (archive(&files(), 86_400).unwrap(), "-tv"),
            (gzipped(&files(), 86_400).unwrap(), "-tzv"),
        ] {
            let mut tar = Command::new("tar")
                .args(["--numeric-owner", "--utc", "--full-time", options])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            tar.stdin.take().unwrap().write_all(&archive).unwrap();
            let listed = String::from_utf8(tar.wait_with_output().unwrap().stdout).unwrap();
            let expected = "\
drwxr-xr-x 0/0               0 1970-01-02 00:00:00 usr/
drwxr-xr-x 0/0               0 1970-01-02 00:00:00 usr/bin/
-rwxr-xr-x 0/0            1000 1970-01-02 00:00:00 usr/bin/program
drwxr-xr-x 0/0               0 1970-01-02 00:00:00 usr/share/
-rw-r--r-- 0/0               6 1970-01-02 00:00:00 usr/share/text
";
            assert_eq!(listed, expected);
        }
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let long = Files::from([("x".repeat(101), File::text(""))]);
        assert!(archive(&long, 0).is_err());
        assert!(archive(&files(), 1 << 33).is_err());
    }
}
