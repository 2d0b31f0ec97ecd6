//! The user side of the kernel programs: loads, attaches and pins them, tells them about
//! pods, and reads what they refuse.
//!
//! Everything is pinned, so capture and walls stand while no agent runs. Only
//! [`Capture::withdraw`] (one pod) and [`Capture::unload`] (everything) take down.

mod abi;
mod bpf;
mod clsact;
mod counters;
mod device;
mod elements;
mod error;
mod events;
pub(crate) mod features;
mod filters;
mod finding;
mod foreign;
mod grandfathered;
mod inner;
mod integrity;
mod inventory;
mod load;
mod measure;
mod netns;
mod object;
mod pins;
mod pods;
mod policy;
mod probes;
mod reason;
mod shut;
mod takeover;
mod task;
mod walls;
mod watch;

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::ProgramFd;
use mesh_common::{ABI_VERSION, ForeignEvent, GlobalConfig, map_name};

use abi::Maps;
use bpf::{AttachType, Target};
use elements::Elements;
pub use error::{CaptureError, Result};
#[cfg(feature = "fuzzing")]
pub(crate) use events::decode as decode_event;
pub use events::{Event, Events};
pub use finding::{Deviation, Finding, Remedy};
pub use grandfathered::kernel_clock_ns;
pub use measure::{Measured, MeasuredProgram, measure};
pub use netns::{netns_cookie, socket_netns_cookie};
use object::{ATTACHED_ONCE, Loader, Place, Updated};
use pins::{Pins, Standing};
pub use policy::SlotPolicy;
pub use probes::CgroupRef;
pub use reason::{from_number, reason};
pub use takeover::TakeOver;
pub use walls::MissingWall;
use walls::WALLS;
use watch::Watch;

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
    taken_over: Option<TakeOver>,
    watch: Watch,
    has_tcx: bool,
}

impl Capture {
    /// Loads, attaches and pins the capture, or takes over what is pinned, of whichever ABI
    /// version: programs are replaced in their links, maps are kept as far as both versions have
    /// the same ([`Self::taken_over`] says which).
    ///
    /// # Errors
    /// If the embedded object is missing, the kernel refuses it, or what is pinned trusts another
    /// cgroup or can't be taken over. What the pods have stands as before.
    pub fn open(options: &CaptureOptions) -> Result<Self> {
        let config = global_config(options)?;
        match pins::settle(options)? {
            Standing::Nothing => Self::create(options, config),
            Standing::Ours(pins) => {
                compare(options, &pins, config)?;
                Self::adopt(options, pins)
            }
            Standing::Other(pins, version) => {
                compare(options, &pins, config)?;
                takeover::take_over(options, &pins, version, config)
            }
        }
    }

    /// How the capture of another ABI version was taken over, if there was one.
    #[must_use]
    pub fn taken_over(&self) -> Option<&TakeOver> {
        self.taken_over.as_ref()
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

    /// The stream of processes that were noticed in pods they are none of. One reader per agent.
    ///
    /// # Errors
    /// If the ring buffer can't be mapped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn foreign(&self) -> Result<Events<ForeignEvent>> {
        Events::open(&self.pins)
    }

    /// Removes everything of an instance: links, pins, folder, whatever its ABI version. Needs no
    /// loaded capture. Call it in the network namespace that the walls are in.
    ///
    /// # Errors
    /// If something can't be removed.
    pub fn unload(options: &CaptureOptions) -> Result<()> {
        for pins in pins::all(options)? {
            for ifindex in walled(&pins) {
                WALLS
                    .into_iter()
                    .try_for_each(|wall| clsact::detach(ifindex, wall))?;
            }
        }
        pins::remove_all(options)
    }

    fn create(options: &CaptureOptions, config: GlobalConfig) -> Result<Self> {
        let (temporary, mut loader) = temporary(options)?;
        let object = loader.open()?;
        let mut maps = Maps::open(&temporary)?;
        maps.set_config(config)?;
        let mut capture = Self::load(temporary, loader, object, maps)?;
        capture.swap(options, &[])?;
        capture.publish(options)?;
        Ok(capture)
    }

    fn adopt(options: &CaptureOptions, pins: Pins) -> Result<Self> {
        let maps = Maps::open(&pins)?;
        let mut loader = Loader::new(&pins)?;
        let object = loader.open()?;
        let mut capture = Self::load(pins, loader, object, maps)?;
        let instances = capture.load_instances()?;
        capture.swap(options, &instances)?;
        Ok(capture)
    }

    /// Loads every program that serves all pods, and replaces none yet: what the kernel refuses
    /// leaves everything as it was.
    fn load(pins: Pins, loader: Loader, object: Ebpf, maps: Maps) -> Result<Self> {
        let mut capture = Self {
            pins,
            loader,
            object,
            maps,
            taken_over: None,
            watch: Watch::default(),
            has_tcx: bpf::has_tcx(),
        };
        for (name, ..) in ATTACHED_ONCE {
            object::load(&mut capture.object, name)?;
        }
        if !capture.walls()?.is_empty() {
            for wall in WALLS {
                object::load_once(&mut capture.object, wall.program)?;
            }
        }
        Ok(capture)
    }

    /// Lets every hook run this agent's program; attaches where there is no link. Returns how many
    /// hooks there are.
    fn swap(
        &mut self,
        options: &CaptureOptions,
        instances: &[(String, ProgramFd)],
    ) -> Result<usize> {
        self.watch.options = Some(options.clone());
        for (name, place, attach_type) in ATTACHED_ONCE {
            self.attach_to_cgroup(name, place.folder(options), attach_type)?;
        }
        for (link, program) in instances {
            // What hung on a namespace or device that is gone needs no program any more.
            let _: Updated = object::update(&self.pins, link, program)?;
        }
        Ok(ATTACHED_ONCE.len() + instances.len() + self.update_walls()?)
    }

    fn attach_to_cgroup(&mut self, name: &str, path: &Path, kind: AttachType) -> Result<()> {
        let program = object::load_once(&mut self.object, name)?;
        if object::update(&self.pins, name, program)? != Updated::Gone {
            return Ok(());
        }
        pins::remove_link(&self.pins.link(name))?;
        let folder = open_folder(path)?;
        let target = Target::Fd(folder.as_fd());
        object::attach(&self.pins, name, program, &target, kind)
    }

    fn publish(&mut self, options: &CaptureOptions) -> Result<()> {
        self.pins = pins::publish(options, &self.pins)?;
        self.loader.use_pins(&self.pins);
        Ok(())
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

/// A fresh folder, and a loader that makes its maps.
fn temporary(options: &CaptureOptions) -> Result<(Pins, Loader)> {
    let pins = pins::temporary(options)?;
    inner::create_arrays(&pins)?;
    let loader = Loader::new(&pins)?;
    Ok((pins, loader))
}

/// Refuses pins that trust another cgroup.
fn compare(options: &CaptureOptions, pins: &Pins, ours: GlobalConfig) -> Result<()> {
    let (id, level) = takeover::trusted_cgroup(pins)?;
    if (id, level) == (ours.mesh_cgroup_id, ours.mesh_cgroup_level) {
        return Ok(());
    }
    Err(CaptureError::CgroupMismatch {
        pins: pins.folder().to_owned(),
        found: id,
        cgroup: options.mesh_cgroup.clone(),
        ours: ours.mesh_cgroup_id,
    })
}

/// Devices that have walls by what is pinned, of whichever version; none where that can't be read.
fn walled(pins: &Pins) -> Vec<u32> {
    let map = pins.map_like(map_name::base(map_name::WALLS));
    let Ok(Some(map)) = map else {
        return Vec::new();
    };
    let keys = Elements::open(&pins.map(&map)).and_then(|walls| walls.keys());
    let ifindexes = keys.unwrap_or_default().into_iter();
    let ifindexes = ifindexes.filter_map(|key| key.try_into().ok().map(u32::from_ne_bytes));
    ifindexes.collect()
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
        kubelet_cgroup_id: 0,
        kubelet_cgroup_level: 0,
        reserved: 0,
        node_netns_cookie: 0,
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
