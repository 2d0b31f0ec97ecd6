//! What an agent has pinned in the kernel, read without the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::bpf::{self, Attributes, bpf, bpf_fd};
use crate::{Agent, removal};

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET: libc::c_long = 7;
const MAP_GET_FD_BY_ID: libc::c_long = 14;

const TYPE_HASH: u32 = 1;
const TYPE_LPM_TRIE: u32 = 11;
const TYPE_ARRAY_OF_MAPS: u32 = 12;

/// The longest key there is, in words of 8 bytes.
const KEY_WORDS: usize = 16;

/// How many entries each pinned map has that can have more or fewer: hash maps and tries, and
/// arrays of such maps, whose entries are counted together.
///
/// # Errors
/// If the agent has no pins, or those of several versions, or one can't be read.
pub fn maps(agent: &Agent) -> Result<BTreeMap<String, usize>> {
    let folder = folder(agent)?.join("maps");
    let mut found = BTreeMap::new();
    for pin in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let pin = pin?.path();
        let counted = Map::pinned(&pin).and_then(|map| map.entries());
        if let Some(entries) = counted.with_context(|| pin.display().to_string())? {
            let name = pin.file_name().unwrap_or_default().to_string_lossy();
            found.insert(name.into_owned(), entries);
        }
    }
    Ok(found)
}

/// How many entries a pinned map has, as [`maps`] counts them.
///
/// # Panics
/// Where [`maps`] has an error, and if there is no such map.
#[must_use]
pub fn entries(agent: &Agent, map: &str) -> usize {
    let maps = maps(agent).unwrap_or_else(|e| panic!("{e:#}"));
    *maps
        .get(map)
        .unwrap_or_else(|| panic!("{map} is not among {maps:?}"))
}

/// The names of the pinned links.
///
/// # Errors
/// As [`maps`].
pub fn links(agent: &Agent) -> Result<Vec<String>> {
    let folder = folder(agent)?.join("links");
    let names = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// One folder, named by the version of the kernel interface.
fn folder(agent: &Agent) -> Result<PathBuf> {
    let pins = Path::new(removal::BPFFS).join(format!("nodemesh-{}", agent.instance));
    let versions: io::Result<Vec<_>> = fs::read_dir(&pins)
        .with_context(|| pins.display().to_string())?
        .collect();
    match &versions?[..] {
        [version] => Ok(version.path()),
        versions => bail!("not the pins of one version: {versions:?}"),
    }
}

struct Map {
    fd: OwnedFd,
    kind: u32,
}

impl Map {
    fn pinned(pin: &Path) -> io::Result<Self> {
        let path = bpf::path(pin)?;
        let mut attributes = Attributes::of(&[]);
        attributes.set_pointer(0, path.as_ptr().cast());
        Self::of(bpf_fd(OBJ_GET, &mut attributes)?)
    }

    fn by_id(id: u32) -> io::Result<Self> {
        Self::of(bpf_fd(MAP_GET_FD_BY_ID, &mut Attributes::of(&[id]))?)
    }

    fn of(fd: OwnedFd) -> io::Result<Self> {
        let kind = bpf::info(fd.as_fd(), 0)?;
        Ok(Self { fd, kind })
    }

    /// `None` for a kind that always has as many.
    fn entries(&self) -> io::Result<Option<usize>> {
        match self.kind {
            TYPE_HASH | TYPE_LPM_TRIE => Ok(Some(self.keys()?.len())),
            TYPE_ARRAY_OF_MAPS => self.entries_of_inner().map(Some),
            _ => Ok(None),
        }
    }

    fn entries_of_inner(&self) -> io::Result<usize> {
        let mut found = 0;
        for key in self.keys()? {
            if let Some(inner) = self.inner(&key)? {
                found += Self::by_id(inner)?.entries()?.unwrap_or(0);
            }
        }
        Ok(found)
    }

    fn keys(&self) -> io::Result<Vec<[u64; KEY_WORDS]>> {
        let mut keys: Vec<[u64; KEY_WORDS]> = Vec::new();
        loop {
            let mut next = [0u64; KEY_WORDS];
            let mut step = self.attributes();
            if let Some(last) = keys.last() {
                step.set_pointer(2, last.as_ptr().cast());
            }
            step.set_pointer(4, next.as_mut_ptr().cast());
            match bpf(MAP_GET_NEXT_KEY, &mut step) {
                Ok(_) => keys.push(bpf::written(&next)),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// The id of the map in a place of an array of maps, if there is one.
    fn inner(&self, key: &[u64; KEY_WORDS]) -> io::Result<Option<u32>> {
        let mut id = [0u32];
        let mut look = self.attributes();
        look.set_pointer(2, key.as_ptr().cast());
        look.set_pointer(4, id.as_mut_ptr().cast());
        match bpf(MAP_LOOKUP_ELEM, &mut look) {
            Ok(_) => Ok(Some(bpf::written(&id)[0])),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn attributes(&self) -> Attributes {
        let fd: BorrowedFd<'_> = self.fd.as_fd();
        Attributes::of(&[fd.as_raw_fd().cast_unsigned()])
    }
}
