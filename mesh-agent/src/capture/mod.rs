//! The user side of the kernel programs: loads, attaches and pins them, tells them about
//! pods, and reads what they refuse.
//!
//! Everything is pinned, so capture and walls stand while no agent runs. Only
//! [`Capture::withdraw`] (one pod) and [`Capture::unload`] (everything) take down.

mod error;
mod netns;
mod reason;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use mesh_common::{KernelReason, PodConfig, RefusalEvent, WallConfig};

pub use error::{CaptureError, Result};
pub use netns::netns_cookie;
pub use reason::{from_number, reason};

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
#[derive(Debug)]
pub struct Capture {}

/// Refusals, in the order of the ring buffer.
#[derive(Debug)]
pub struct Events {}

impl Capture {
    /// Loads, attaches and pins the capture, or takes over what is pinned: the maps are
    /// kept, and programs that differ from the embedded ones are replaced in their links.
    ///
    /// # Errors
    /// If the embedded object is missing, the kernel refuses it, or what is pinned has
    /// another ABI version or trusts another cgroup.
    pub fn open(_options: &CaptureOptions) -> Result<Self> {
        Err(CaptureError::NoObject)
    }

    /// Gives a slot fresh maps and zeroed counters. First step of an enrolment.
    ///
    /// # Errors
    /// If a map can't be made or changed.
    pub fn prepare_pod(&mut self, _slot: u32) -> Result<()> {
        Err(CaptureError::NoObject)
    }

    /// Puts the wall on the host's side of a pod's veth, in the caller's network namespace.
    ///
    /// # Errors
    /// If the device is gone or the kernel refuses.
    pub fn attach_wall(&mut self, _ifindex: u32, _wall: WallConfig) -> Result<()> {
        Err(CaptureError::NoObject)
    }

    /// Hands the plaintext listeners to `sk_lookup`; replaces those of an earlier worker.
    ///
    /// # Errors
    /// If a descriptor is no listening TCP socket.
    pub fn set_listeners(
        &mut self,
        _slot: u32,
        _v4: BorrowedFd<'_>,
        _v6: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        Err(CaptureError::NoObject)
    }

    /// Attaches this pod's `sk_lookup` to its network namespace: from now on inbound TCP goes
    /// to the worker's listener or nowhere. Does nothing if it is attached.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn steer(&mut self, _slot: u32, _netns: BorrowedFd<'_>) -> Result<()> {
        Err(CaptureError::NoObject)
    }

    /// Enrols the pod: from now on its connections are captured. Last step; one insert.
    ///
    /// # Errors
    /// If the insert fails.
    pub fn enrol(&mut self, _netns_cookie: u64, _pod: PodConfig) -> Result<()> {
        Err(CaptureError::NoObject)
    }

    /// Takes a pod out: enrolment, steering, walls, listeners, maps. What isn't there is no error.
    ///
    /// # Errors
    /// If something can't be removed; the rest is removed all the same.
    pub fn withdraw(&mut self, _netns_cookie: u64, _slot: u32, _ifindexes: &[u32]) -> Result<()> {
        Err(CaptureError::NoObject)
    }

    /// Who is enrolled, by netns cookie: for re-adoption.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn enrolled(&self) -> Result<Vec<(u64, PodConfig)>> {
        Err(CaptureError::NoObject)
    }

    /// Exact counts of a pod's refusals, those above zero.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn refusals(&self, _slot: u32) -> Result<Vec<(KernelReason, u64)>> {
        Err(CaptureError::NoObject)
    }

    /// The stream of refusals. One reader per agent.
    ///
    /// # Errors
    /// Outside a tokio runtime, or if the ring buffer can't be mapped.
    pub fn events(&self) -> Result<Events> {
        Err(CaptureError::NoObject)
    }

    /// Removes everything of an instance: links, pins, folder. Needs no loaded capture.
    ///
    /// # Errors
    /// If something can't be removed.
    pub fn unload(_options: &CaptureOptions) -> Result<()> {
        Err(CaptureError::NoObject)
    }
}

impl Events {
    /// The next refusal. Cancel-safe.
    ///
    /// # Errors
    /// If the ring buffer's descriptor fails.
    pub async fn next(&mut self) -> Result<RefusalEvent> {
        Err(CaptureError::NoObject)
    }
}
