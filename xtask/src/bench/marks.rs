//! Documents of which a command makes the part between two marks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- begin: measured -->\n";
const END: &str = "<!-- end: measured -->";

/// What is before, between and after the marks.
pub(crate) fn parts(document: &str) -> Option<[&str; 3]> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (between, after) = rest.split_once(END)?;
    Some([before, between, after])
}

/// Puts between the marks of a document what `measured` makes of the whole, and beside it these
/// files.
pub(crate) fn write(
    document: &Path,
    measured: impl FnOnce(&str) -> String,
    folder: &Path,
    files: &[(String, String)],
) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (name, content) in files {
        fs::write(folder.join(name), content)?;
    }
    let text = fs::read_to_string(document).with_context(|| document.display().to_string())?;
    let [before, _, after] =
        parts(&text).with_context(|| format!("{} lacks its marks", document.display()))?;
    let measured = measured(&text);
    fs::write(document, format!("{before}{BEGIN}{measured}{END}{after}"))?;
    eprintln!("wrote {} and {}", document.display(), folder.display());
    Ok(())
}

/// Asserts that document and files are what these results make of them: the numbers of a
/// document can't be changed but by way of the file that they come from.
#[cfg(test)]
pub(crate) fn assert_unchanged(
    document: &str,
    measured: &str,
    folder: &Path,
    files: &[(String, String)],
    again: &str,
) {
    let [_, between, _] = parts(document).unwrap();
    // Not assert_eq, which would print two whole documents.
    assert!(measured == between, "the document: run `{again}`");
    for (name, content) in files {
        let stands = fs::read_to_string(folder.join(name)).unwrap();
        assert!(*content == stands, "{name}: run `{again}`");
    }
}
