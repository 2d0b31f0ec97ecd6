//! Where the pins are: `<bpffs>/nodemesh-<instance>/v<ABI>/{maps,links}`.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use mesh_common::ABI_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::CaptureOptions;
use super::bpf;
use super::error::{self, CaptureError, Result};

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
}

/// Pins in their place; `None` if there are none of this ABI.
pub(super) fn existing(options: &CaptureOptions) -> Result<Option<Pins>> {
    let instance = instance_folder(options);
    let ours = format!("v{ABI_VERSION}");
    let versions = match names(&instance) {
        Ok(names) => names,
        Err(CaptureError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => vec![],
        Err(e) => return Err(e),
    };
    for name in &versions {
        if let Some(found) = name.strip_prefix('v').and_then(|v| v.parse().ok())
            && found != ABI_VERSION
        {
            return Err(CaptureError::AbiMismatch {
                pins: instance.join(name),
                found,
                ours: ABI_VERSION,
            });
        }
    }
    let folder = instance.join(&ours);
    Ok(versions.contains(&ours).then_some(Pins { folder }))
}

/// A fresh folder, to be moved to its place by [`publish`]. What an agent left that died
/// while it made its own is removed first: it may hold attached links.
pub(super) fn temporary(options: &CaptureOptions) -> Result<Pins> {
    mount_bpffs(&options.bpffs)?;
    let folder = instance_folder(options).join("new");
    remove_folder(&folder)?;
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

/// Removes the pins of an instance, links first: nothing stays attached to maps that
/// nobody can reach.
pub(super) fn remove_all(options: &CaptureOptions) -> Result<()> {
    let instance = instance_folder(options);
    match names(&instance) {
        Err(CaptureError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(versions) => {
            for version in versions {
                remove_folder(&instance.join(version))?;
            }
            remove_empty(&instance)
        }
    }
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

fn remove_folder(folder: &Path) -> Result<()> {
    for (part, remove) in [("links", remove_link as fn(&Path) -> _), ("maps", remove)] {
        let part = folder.join(part);
        match names(&part) {
            Err(CaptureError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(names) => {
                for name in names {
                    remove(&part.join(name))?;
                }
                remove_empty(&part)?;
            }
        }
    }
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

fn names(folder: &Path) -> Result<Vec<String>> {
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    read().map_err(error::io("reading the folder", folder))
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
