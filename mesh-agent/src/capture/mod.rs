//! The user side of the kernel programs: loads, attaches and pins them, tells them about
//! pods, and reads what they refuse.
//!
//! Everything is pinned, so capture and walls stand while no agent runs. Only
//! [`Capture::withdraw`] (one pod) and [`Capture::unload`] (everything) take down.

mod abi;
mod bpf;
mod clsact;
mod counters;
mod error;
mod events;
mod inner;
mod netns;
mod object;
mod pins;
mod pods;
mod policy;
mod reason;
mod shut;
mod walls;

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use mesh_common::{ABI_VERSION, GlobalConfig, map_name};

use abi::{Abi, Maps};
use bpf::Target;
pub use error::{CaptureError, Result};
pub use events::Events;
pub use netns::{netns_cookie, socket_netns_cookie};
use object::{ATTACHED_ONCE, Loader, Place, Updated};
use pins::Pins;
pub use policy::SlotPolicy;
pub use reason::{from_number, reason};
use walls::WALLS;

/// Where one agent's capture lives. Several agents share a kernel by having different instances.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Name of the agent's instance: the folder of the pins is called after it.
    pub instance: String,
    /// The bpf file system, mounted if it isn't: normally `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// Mount point of cgroup2; the hooks are attached to it.
    pub cgroup_root: PathBuf,
    /// Root of the mesh's subtree, an existing cgroup below `cgroup_root`.
    pub mesh_cgroup: PathBuf,
}

/// The loaded capture of one agent. Dropping it leaves everything in place.
pub struct Capture {
    pins: Pins,
    loader: Loader,
    object: Ebpf,
    maps: Maps,
}

impl Capture {
    /// Loads, attaches and pins the capture, or takes over what is pinned: the maps are
    /// kept, and programs that differ from the embedded ones are replaced in their links.
    ///
    /// # Errors
    /// If the embedded object is missing, the kernel refuses it, or what is pinned has
    /// another ABI version or trusts another cgroup.
    pub fn open(options: &CaptureOptions) -> Result<Self> {
        let config = global_config(options)?;
        match pins::existing(options)? {
            Some(pins) => Self::adopt(options, pins, config),
            None => Self::create(options, config),
        }
    }

    /// The stream of refusals. One reader per agent.
    ///
    /// # Errors
    /// If the ring buffer can't be mapped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn events(&self) -> Result<Events> {
        Events::open(&self.pins)
    }

    /// Removes everything of an instance: links, pins, folder. Needs no loaded capture. Call
    /// it in the network namespace that the walls are in.
    ///
    /// # Errors
    /// If something can't be removed.
    pub fn unload(options: &CaptureOptions) -> Result<()> {
        if let Ok(Some(pins)) = pins::existing(options)
            && let Ok(maps) = Maps::open(&pins)
        {
            for ifindex in maps.walls.keys().filter_map(Result::ok) {
                WALLS
                    .into_iter()
                    .try_for_each(|wall| clsact::detach(ifindex, wall))?;
            }
        }
        pins::remove_all(options)
    }

    fn create(options: &CaptureOptions, config: GlobalConfig) -> Result<Self> {
        let temporary = pins::temporary(options)?;
        inner::create_arrays(&temporary)?;
        let mut loader = Loader::new(&temporary)?;
        let mut object = loader.open()?;
        let mut maps = Maps::open(&temporary)?;
        maps.config
            .set(0, Abi(config), 0)
            .map_err(abi::failed(map_name::CONFIG))?;
        for (name, place, attach_type) in ATTACHED_ONCE {
            let folder = open_folder(place.folder(options))?;
            let program = object::load(&mut object, name)?;
            let target = Target::Fd(folder.as_fd());
            object::attach(&temporary, name, program, &target, attach_type)?;
        }
        let pins = pins::publish(options, &temporary)?;
        loader.use_pins(&pins);
        Ok(Self {
            pins,
            loader,
            object,
            maps,
        })
    }

    fn adopt(options: &CaptureOptions, pins: Pins, config: GlobalConfig) -> Result<Self> {
        let maps = Maps::open(&pins)?;
        let Abi(found) = maps
            .config
            .get(&0, 0)
            .map_err(abi::failed(map_name::CONFIG))?;
        compare(options, &pins, found, config)?;
        let mut loader = Loader::new(&pins)?;
        let mut object = loader.open()?;
        for (name, place, attach_type) in ATTACHED_ONCE {
            let program = object::load(&mut object, name)?;
            if object::update(&pins, name, program)? == Updated::Gone {
                pins::remove_link(&pins.link(name))?;
                let folder = open_folder(place.folder(options))?;
                let target = Target::Fd(folder.as_fd());
                object::attach(&pins, name, program, &target, attach_type)?;
            }
        }
        let mut capture = Self {
            pins,
            loader,
            object,
            maps,
        };
        capture.update_steering()?;
        capture.update_walls()?;
        Ok(capture)
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

impl Place {
    fn folder(self, options: &CaptureOptions) -> &Path {
        match self {
            Self::Root => &options.cgroup_root,
            Self::Mesh => &options.mesh_cgroup,
        }
    }
}

fn compare(
    options: &CaptureOptions,
    pins: &Pins,
    found: GlobalConfig,
    ours: GlobalConfig,
) -> Result<()> {
    if found.abi_version != ours.abi_version {
        return Err(CaptureError::AbiMismatch {
            pins: pins.folder().to_owned(),
            found: found.abi_version,
            ours: ours.abi_version,
        });
    }
    if found != ours {
        return Err(CaptureError::CgroupMismatch {
            pins: pins.folder().to_owned(),
            found: found.mesh_cgroup_id,
            cgroup: options.mesh_cgroup.clone(),
            ours: ours.mesh_cgroup_id,
        });
    }
    Ok(())
}

/// Levels count from the hierarchy's root, so `cgroup_root` must be that root.
fn global_config(options: &CaptureOptions) -> Result<GlobalConfig> {
    let outside = || CaptureError::CgroupOutside {
        cgroup: options.mesh_cgroup.clone(),
        root: options.cgroup_root.clone(),
    };
    let root = open_folder(&options.cgroup_root)?;
    let below = options
        .mesh_cgroup
        .strip_prefix(&options.cgroup_root)
        .map_err(|_| outside())?;
    let level = u32::try_from(below.components().count()).map_err(|_| outside())?;
    if level == 0 || id(&root, &options.cgroup_root)? != ROOT_CGROUP_ID {
        return Err(outside());
    }
    let mesh = open_folder(&options.mesh_cgroup)?;
    Ok(GlobalConfig {
        mesh_cgroup_id: id(&mesh, &options.mesh_cgroup)?,
        mesh_cgroup_level: level,
        abi_version: ABI_VERSION,
    })
}

/// The id of the root of the cgroup2 hierarchy.
const ROOT_CGROUP_ID: u64 = 1;

/// A cgroup's id is its folder's inode number (on 64-bit kernels).
fn id(folder: &File, path: &Path) -> Result<u64> {
    let metadata = folder
        .metadata()
        .map_err(error::io("asking for the id of", path))?;
    Ok(metadata.ino())
}

fn open_folder(path: &Path) -> Result<File> {
    File::open(path).map_err(error::io("opening the cgroup", path))
}
