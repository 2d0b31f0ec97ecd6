//! Where the pins are: `<bpffs>/nodemesh-<instance>/v<ABI>/{maps,links}`.
//!
//! A folder gets that name when it is complete, and loses it before anything in it is removed; what
//! has another name (`new`, `old`) is in the making or on its way out. Where an agent was killed
//! while it took over from another version there are two complete folders: no agent has worked with
//! either since, so both say the same, and each agent may go by its own.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use mesh_common::{ABI_VERSION, ABI_VERSION_OLDEST, map_name};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::CaptureOptions;
use super::bpf;
use super::error::{self, CaptureError, Result};

/// In the making.
const NEW: &str = "new";
/// On its way out.
const OLD: &str = "old";

/// The folders of one capture.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join("maps").join(name)
    }

    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.folder.join("links").join(name)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of the pinned links.
    pub(super) fn links(&self) -> Result<Vec<String>> {
        names(&self.folder.join("links"))
    }

    /// The name that a map has there, whatever its layout.
    pub(super) fn map_like(&self, base: &str) -> Result<Option<String>> {
        let maps = entries(&self.folder.join("maps"))?;
        Ok(maps.into_iter().find(|name| map_name::base(name) == base))
    }

    /// Whether one of these links is the same as the one pinned there.
    fn has_link(&self, pin: &Path) -> io::Result<bool> {
        let Some(name) = pin.file_name().map(Path::new) else {
            return Ok(false);
        };
        let ours = self.folder.join("links").join(name);
        match (link_id(&ours), link_id(pin)) {
            (Ok(ours), Ok(theirs)) => Ok(ours == theirs),
            (Err(e), _) | (_, Err(e)) if e.kind() == ErrorKind::NotFound => Ok(false),
            (Err(e), _) | (_, Err(e)) => Err(e),
        }
    }
}

/// The capture that stands.
#[derive(Debug)]
pub(super) enum Standing {
    /// None.
    Nothing,
    /// One of this agent's ABI.
    Ours(Pins),
    /// One of another version.
    Other(Pins, u32),
}

/// Finds the capture that stands, and removes what agents left that died while they made or
/// removed another.
pub(super) fn settle(options: &CaptureOptions) -> Result<Standing> {
    let instance = instance_folder(options);
    let mut versions: Vec<u32> = entries(&instance)?
        .iter()
        .filter_map(|name| version(name))
        .collect();
    // Ours first, then the newest.
    versions.sort_unstable_by_key(|&v| (v == ABI_VERSION, v));
    let Some(found) = versions.pop() else {
        remove_folder(&instance.join(OLD), None)?;
        return Ok(Standing::Nothing);
    };
    let pins = Pins {
        folder: instance.join(format!("v{found}")),
    };
    if found < ABI_VERSION_OLDEST {
        return Err(CaptureError::AbiTooOld {
            pins: pins.folder,
            found,
            ours: ABI_VERSION,
            oldest: ABI_VERSION_OLDEST,
        });
    }
    for name in [NEW, OLD] {
        remove_folder(&instance.join(name), Some(&pins))?;
    }
    for other in versions {
        let other = instance.join(format!("v{other}"));
        retire(options, &Pins { folder: other }, &pins)?;
    }
    Ok(match found {
        ABI_VERSION => Standing::Ours(pins),
        other => Standing::Other(pins, other),
    })
}

/// Every folder of an instance, in whatever state.
pub(super) fn all(options: &CaptureOptions) -> Result<Vec<Pins>> {
    let instance = instance_folder(options);
    let folders = entries(&instance)?.into_iter();
    let folders = folders.map(|name| instance.join(name));
    Ok(folders.map(|folder| Pins { folder }).collect())
}

/// A fresh folder, to be moved to its place by [`publish`]. What an agent left that died
/// while it made its own is removed first: it may hold attached links.
pub(super) fn temporary(options: &CaptureOptions) -> Result<Pins> {
    mount_bpffs(&options.bpffs)?;
    let folder = instance_folder(options).join(NEW);
    remove_folder(&folder, None)?;
    for part in ["maps", "links"] {
        let part = folder.join(part);
        fs::create_dir_all(&part).map_err(error::io("making the folder", &part))?;
    }
    Ok(Pins { folder })
}

/// Moves a finished folder to its place.
pub(super) fn publish(options: &CaptureOptions, temporary: &Pins) -> Result<Pins> {
    let folder = instance_folder(options).join(format!("v{ABI_VERSION}"));
    fs::rename(&temporary.folder, &folder).map_err(error::io("moving the pins to", &folder))?;
    Ok(Pins { folder })
}

/// Removes the folder of another version, whose links are pinned in `ours` as well; a link that
/// isn't is a hook that this version doesn't have, and is taken off.
pub(super) fn retire(options: &CaptureOptions, other: &Pins, ours: &Pins) -> Result<()> {
    let old = instance_folder(options).join(OLD);
    fs::rename(&other.folder, &old).map_err(error::io("moving the pins to", &old))?;
    remove_folder(&old, Some(ours))
}

/// Removes the pins of an instance, links first: nothing stays attached to maps that
/// nobody can reach.
pub(super) fn remove_all(options: &CaptureOptions) -> Result<()> {
    let instance = instance_folder(options);
    let old = instance.join(OLD);
    for name in [OLD, NEW] {
        remove_folder(&instance.join(name), None)?;
    }
    for pins in all(options)? {
        fs::rename(&pins.folder, &old).map_err(error::io("moving the pins to", &old))?;
        remove_folder(&old, None)?;
    }
    remove_empty(&instance)
}

/// Pins a link at a second place.
pub(super) fn pin_again(link: &Path, at: &Path) -> Result<()> {
    let fd = bpf::open(link).map_err(error::io("opening the link", link))?;
    bpf::pin(fd.as_fd(), at).map_err(error::io("pinning the link", at))
}

/// Pins something else in the place of a map that nothing uses yet.
pub(super) fn replace(map: &Path, pin: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    remove(map)?;
    pin(map).map_err(error::io("pinning the map", map))
}

/// Takes a link's program off and removes its pin; what isn't there is no error.
pub(super) fn remove_link(path: &Path) -> Result<()> {
    match bpf::open(path) {
        Ok(link) => ignore_missing(bpf::link_detach(link.as_fd())),
        Err(e) => ignore_missing(Err(e)),
    }
    .map_err(error::io("detaching the link", path))?;
    remove(path)
}

fn remove(path: &Path) -> Result<()> {
    ignore_missing(fs::remove_file(path)).map_err(error::io("removing the pin", path))
}

/// Removes a folder of pins and takes its links off, but for those that `keep` has too.
fn remove_folder(folder: &Path, keep: Option<&Pins>) -> Result<()> {
    let (links, maps) = (folder.join("links"), folder.join("maps"));
    for name in entries(&links)? {
        let link = links.join(name);
        let kept = keep.map_or(Ok(false), |keep| keep.has_link(&link));
        match kept.map_err(error::io("asking the link", &link))? {
            true => remove(&link)?,
            false => remove_link(&link)?,
        }
    }
    for name in entries(&maps)? {
        remove(&maps.join(name))?;
    }
    remove_empty(&links)?;
    remove_empty(&maps)?;
    remove_empty(folder)
}

fn remove_empty(folder: &Path) -> Result<()> {
    ignore_missing(fs::remove_dir(folder)).map_err(error::io("removing the folder", folder))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// As [`names`]; a folder that isn't there has none.
fn entries(folder: &Path) -> Result<Vec<String>> {
    match names(folder) {
        Err(CaptureError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(vec![]),
        other => other,
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    read().map_err(error::io("reading the folder", folder))
}

fn version(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.parse().ok()
}

fn link_id(pin: &Path) -> io::Result<u32> {
    let link = bpf::open(pin)?;
    bpf::link_info(link.as_fd()).map(|info| info.id)
}

fn instance_folder(options: &CaptureOptions) -> PathBuf {
    options.bpffs.join(format!("nodemesh-{}", options.instance))
}

fn mount_bpffs(path: &Path) -> Result<()> {
    let is_bpffs = || statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    if is_bpffs() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(error::io("making the folder", path))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(io::Error::from)
        .map_err(error::io("mounting a bpf file system on", path))
}
