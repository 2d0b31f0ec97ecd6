//! The plugin's binary and its entry, in the folders that the container runtime reads.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::conflist::{self, ConflistError};
use crate::cni::ENTRY_TYPE;

/// What runtimes read in their folder, in the order of names
/// (`libcni.ConfFiles`).
const CONFIG_EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// The agent's own configuration: a copy of the network's, with the entry at its end. Runtimes take the
/// first by name, and digits and letters come after `-`. What the network plugin's installer writes, it
/// writes to another file, so nothing that it does takes the entry away.
pub(super) const OWN: &str = "00--nodemesh.conflist";
/// What agents before this one called a single plugin's configuration that they had made a conflist of.
const SET_ASIDE: &str = ".nodemesh-aside";
/// Longest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1024 * 1024;
const BINARY_MODE: u32 = 0o755;

/// What is in the way.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    #[error("{action} {path}: {source}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{0} has no network configuration (yet): a network plugin's installer puts one there")]
    NoNetwork(PathBuf),
    #[error("{path} can't be copied with the entry {ENTRY_TYPE}: {source}")]
    Conflist {
        path: PathBuf,
        source: ConflistError,
    },
    #[error(
        "{first} comes before {OWN} by name, so runtimes take it, and it has no entry {ENTRY_TYPE}: give it a name that begins with a digit from 1 on"
    )]
    Before { first: PathBuf },
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |source| FilesError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A file as it was when it was last read as a whole: inode, size, time of its last change in ns.
pub(super) type Marks = (u64, u64, i64, i64);

fn marks(path: &Path) -> Option<Marks> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
}

/// Puts the binary in place. Whether it had to. `known` is what was compared before, and is not
/// compared again.
pub(super) fn put_binary(
    plugin: &Path,
    folder: &Path,
    known: &mut Option<Marks>,
) -> Result<bool, FilesError> {
    let path = folder.join(ENTRY_TYPE);
    let found = marks(&path);
    if found.is_some() && found == *known {
        return Ok(false);
    }
    let changed = compare_and_put(plugin, &path)?;
    // Taken before the comparison: what is written meanwhile has other marks.
    *known = found.filter(|_| !changed);
    Ok(changed)
}

fn compare_and_put(plugin: &Path, path: &Path) -> Result<bool, FilesError> {
    let same = is_same(plugin, path).map_err(file("comparing the plugin with", path))?;
    if same {
        return Ok(false);
    }
    let source = File::open(plugin).map_err(file("opening the plugin", plugin))?;
    replace(path, source, BINARY_MODE).map_err(file("writing", path))?;
    Ok(true)
}

/// Whether `path` is an executable of the same content.
fn is_same(plugin: &Path, path: &Path) -> io::Result<bool> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    let mut ours = File::open(plugin)?;
    let whole = found.is_file()
        && found.mode() & 0o7777 == BINARY_MODE
        && found.len() == ours.metadata()?.len();
    if !whole {
        return Ok(false);
    }
    let mut theirs = File::open(path)?;
    let (mut a, mut b) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let n = ours.read(&mut a)?;
        if n == 0 {
            return Ok(true);
        }
        match theirs.read_exact(&mut b[..n]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        if a[..n] != b[..n] {
            return Ok(false);
        }
    }
}

/// Copies the configuration that runtimes would take, the first by name, to the agent's own, with the
/// entry at its end. Which file was copied, and whether anything had to be written.
///
/// What can't be copied leaves the last copy as it is; where there is no network any more, there is no
/// copy of it.
pub(super) fn put_entry(folder: &Path, entry: &Value) -> Result<(PathBuf, bool), FilesError> {
    let own = folder.join(OWN);
    let mut others = list(folder)?;
    others.retain(|path| *path != own);
    others.sort();
    let Some(first) = others.first().cloned() else {
        remove(&own)?;
        return Err(FilesError::NoNetwork(folder.to_owned()));
    };
    let text = read(&first)?;
    let is_list = first.extension().is_some_and(|e| e == "conflist");
    let copy = match is_list {
        true => conflist::with_entry(&text, entry),
        false => conflist::of_single(&text).and_then(|list| conflist::with_entry(&list, entry)),
    };
    let copy = copy.map_err(|source| FilesError::Conflist {
        path: first.clone(),
        source,
    })?;
    let changed = read(&own).ok().as_ref() != Some(&copy);
    if changed {
        replace_config(&own, &first, &copy)?;
    }
    // An agent before this one has put it there.
    for path in others.iter().filter(|path| has_entry(path)) {
        take_entry_out(path)?;
    }
    match first < own {
        true => Err(FilesError::Before { first }),
        false => Ok((first, changed)),
    }
}

fn has_entry(path: &Path) -> bool {
    let is_list = path.extension().is_some_and(|e| e == "conflist");
    let text = read(path).unwrap_or_default();
    is_list && matches!(conflist::without_entry(&text), Ok(Some(_)))
}

/// Takes entry and binary out of the folders, wherever they are. Everything that can be taken out is;
/// the faults of the rest.
pub(super) fn take_out(binaries: &Path, configs: &Path) -> Vec<FilesError> {
    let mut faults = Vec::new();
    match list(configs) {
        Ok(found) => {
            let own = configs.join(OWN);
            let entered = found.iter().filter(|p| **p != own && has_entry(p));
            faults.extend(entered.filter_map(|path| take_entry_out(path).err()));
            // Last: others are taken from then on.
            faults.extend(remove(&own).err());
        }
        // Where there is no folder there is no entry.
        Err(FilesError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(e) => faults.push(e),
    }
    // After the entry, or pods would be refused for want of it.
    faults.extend(remove(&binaries.join(ENTRY_TYPE)).err());
    faults
}

/// What isn't there is removed already.
fn remove(path: &Path) -> Result<(), FilesError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file("removing", path)(e)),
        _ => Ok(()),
    }
}

fn take_entry_out(path: &Path) -> Result<(), FilesError> {
    let text = read(path)?;
    // What can't be read has no entry that a runtime would read.
    let Ok(Some(text)) = conflist::without_entry(&text) else {
        return Ok(());
    };
    for single in ["conf", "json"].map(|extension| path.with_extension(extension)) {
        let aside = beside(&single, SET_ASIDE);
        if aside.exists() {
            fs::rename(&aside, &single).map_err(file("putting back", &single))?;
            return fs::remove_file(path).map_err(file("removing", path));
        }
    }
    replace_config(path, path, &text)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let entries = fs::read_dir(folder).map_err(file("reading the folder", folder))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_config = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        extension.is_some_and(|e| CONFIG_EXTENSIONS.contains(&e)) && !path.is_dir()
    };
    Ok(paths.filter(is_config).collect())
}

fn read(path: &Path) -> Result<String, FilesError> {
    let mut text = String::new();
    let opened = File::open(path).map_err(file("opening", path))?;
    let read = opened.take(MAX_CONFIG).read_to_string(&mut text);
    read.map_err(file("reading", path))?;
    Ok(text)
}

/// With the mode of that one: a configuration may have secrets in it.
fn replace_config(path: &Path, like: &Path, text: &str) -> Result<(), FilesError> {
    let mode = fs::metadata(like).map_or(0o600, |found| found.mode() & 0o777);
    replace(path, text.as_bytes(), mode).map_err(file("writing", path))
}

/// Writes a file as a whole, and durably: a node that loses power has the old one or the new one.
fn replace(path: &Path, mut content: impl Read, mode: u32) -> io::Result<()> {
    let new = beside(path, ".nodemesh-new");
    let mut write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        let mut file = options.open(&new)?;
        copy(&mut content, &mut file)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Without the system calls that `io::copy` tries for files.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
