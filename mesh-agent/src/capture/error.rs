//! What can go wrong between the agent and the kernel's eBPF.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// A failure to load, attach or change the capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The agent was built without the object.
    #[error(
        "this mesh-agent was built without eBPF programs: run `cargo xtask ebpf` and build again"
    )]
    NoObject,
    /// Pins of an ABI are in place from before agents took over from each other.
    #[error(
        "the pinned capture in {pins} has ABI version {found}; this agent has {ours} and can take over \
         from {oldest} on: let the agent that made it run, or `mesh-agent unload` it (its pods leave \
         the mesh) and start anew"
    )]
    AbiTooOld {
        /// Folder of the pins.
        pins: PathBuf,
        /// Its version.
        found: u32,
        /// What this agent was built with.
        ours: u32,
        /// The oldest that it can take over from.
        oldest: u32,
    },
    /// The capture of another ABI version lacks what it must have to be taken over.
    #[error(
        "the pinned capture in {pins} of ABI version {found} can't be taken over by this agent, which \
         has {ours}: map {map}: {why}; let an agent of version {found} run, or `mesh-agent unload` it \
         (its pods leave the mesh) and start anew"
    )]
    NotCarried {
        /// Folder of the pins.
        pins: PathBuf,
        /// Its version.
        found: u32,
        /// What this agent was built with.
        ours: u32,
        /// The map.
        map: String,
        /// What is wrong with it.
        why: String,
    },
    /// A folder of pins lacks a map.
    #[error("the pinned capture in {pins} has no map {map}: `mesh-agent unload` it and start anew")]
    Incomplete {
        /// Folder of the pins.
        pins: PathBuf,
        /// What is missing.
        map: &'static str,
    },
    /// The pins trust another cgroup than the mesh subtree there is now.
    #[error(
        "the pinned capture in {pins} trusts the cgroup with id {found}, but {cgroup} has id {ours}: \
         the subtree was removed and made again while the capture stood; `mesh-agent unload` and start anew"
    )]
    CgroupMismatch {
        /// Folder of the pins.
        pins: PathBuf,
        /// What the pins say.
        found: u64,
        /// The subtree that was given.
        cgroup: PathBuf,
        /// Its id.
        ours: u64,
    },
    /// The mesh subtree isn't below the cgroup2 mount.
    #[error(
        "the mesh's cgroup {cgroup} is not below {root}, or that is not the root of the cgroup2 \
         hierarchy (run the agent in the host's cgroup namespace)"
    )]
    CgroupOutside {
        /// The subtree that was given.
        cgroup: PathBuf,
        /// The mount that was given.
        root: PathBuf,
    },
    /// A slot that no map has.
    #[error("pod slot {slot} is out of range: an agent enrols at most {max} pods")]
    Slot {
        /// The slot that was asked for.
        slot: u32,
        /// One more than the greatest.
        max: u32,
    },
    /// More than the trie of one pod may hold.
    #[error(
        "the policy of the pod in slot {slot} comes to {entries} entries in the kernel, at most {max} \
         fit: name fewer blocks or ports; the policy before it stays in force"
    )]
    PolicySize {
        /// The pod's slot.
        slot: u32,
        /// What its policy comes to.
        entries: usize,
        /// What fits.
        max: u32,
    },
    /// The embedded object lacks something: it is of another build.
    #[error(
        "the embedded eBPF object has no {what} named {name}: run `cargo xtask ebpf` and build again"
    )]
    ObjectLacks {
        /// "program" or "map".
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The kernel or the loader refused the object.
    #[error("loading the eBPF object: {0}")]
    Load(#[source] Box<EbpfError>),
    /// A program was refused: most often by the verifier.
    #[error("eBPF program {name}: {source}")]
    Program {
        /// Its name.
        name: String,
        /// The kernel's answer, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// A map operation failed.
    #[error("eBPF map {name}: {source}")]
    Map {
        /// Its name.
        name: String,
        /// The kernel's answer.
        source: MapError,
    },
    /// A file or system call failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Shorthand of this module.
pub type Result<T, E = CaptureError> = std::result::Result<T, E>;

pub(super) fn io(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> CaptureError {
    let path = path.into();
    move |source| CaptureError::Io {
        action,
        path,
        source,
    }
}
