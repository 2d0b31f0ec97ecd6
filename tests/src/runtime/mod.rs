//! A container runtime on a node of the lab: containerd, runc and the CNI plugins as packages
//! carry them, with folders, sockets and a network of their own, and what a kubelet does with
//! them ([`pods`]).
//!
//! A node is a network namespace: the runtime is started in it, so the bridge that the plugins
//! make is the node's. Nothing of the machine's own runtime is touched, if it has one.

mod config;
pub mod cri;
mod forward;
mod image;
mod leftovers;
pub mod pods;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use config::{Folders, Network};
use cri::Cri;
pub(crate) use leftovers::release;
pub use pods::{Container, Sandbox};

use crate::cgroup::{self, Cgroup};
use crate::mesh::{Daemon, run};
use crate::node::Host;
use crate::wire::Capture;
use crate::{Lab, programs, removal, wait};

/// The bridge that a node's pods are on.
pub const BRIDGE: &str = "cni0";

/// The runtime's pods have the upper half of their node's block, which their gateway begins; those
/// below are the lab's own pods'.
const HALF: u8 = 128;
const FIRST_ADDRESS: u8 = HALF + 2;

/// To load its plugins, on a machine that does other things too.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// What a node's runtime and kubelet do.
#[derive(Debug)]
pub struct Runtime {
    /// containerd.
    pub daemon: Daemon,
    /// The way to ask it.
    pub cri: Cri,
    /// Its folders.
    pub folders: Folders,
    /// The network of the node's pods.
    pub network: Network,
    /// Below this are the pods' cgroups, in each hierarchy, as below a kubelet's `--cgroup-root`.
    cgroup_root: String,
}

impl Runtime {
    /// Starts a runtime on a node of a lab, whose pods get one of so many addresses.
    ///
    /// # Errors
    /// If a program is missing, or it does not come up; with the end of its log.
    pub fn start(lab: &Lab, node: usize, addresses: u8) -> Result<Self> {
        let mut runtime = Self::new(lab, node, addresses)?;
        runtime.folders.configure()?;
        runtime.folders.write_conflist(&runtime.network, &[])?;
        runtime.start_again(lab.node(node))?;
        runtime.load_image()?;
        Ok(runtime)
    }

    /// Starts the runtime that a node had before its machine was booted, with what is on its disk: its
    /// configuration, the network's, images, records of sandboxes.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn resume(lab: &Lab, node: usize, addresses: u8) -> Result<Self> {
        let mut runtime = Self::new(lab, node, addresses)?;
        runtime.start_again(lab.node(node))?;
        Ok(runtime)
    }

    fn new(lab: &Lab, node: usize, addresses: u8) -> Result<Self> {
        let host = lab.node(node);
        let folders = Folders::make(host.folder.join("runtime"))?;
        let network = network(lab, host, addresses);
        let group = removal::cgroup_name(lab.prefix());
        let place = cgroup::mount_point()?.join(&group);
        let name = format!("runtime-{}", host.name());
        let daemon = Daemon::new(
            &format!("containerd on {}", host.name()),
            programs::find("containerd".as_ref())?,
            vec![
                "--config".to_owned(),
                folders.configuration().display().to_string(),
            ],
            host.folder.join("containerd.log"),
            Cgroup::create(place.join(name))?,
        );
        Ok(Self {
            daemon,
            cri: Cri::at(folders.socket()),
            folders,
            network,
            cgroup_root: format!("/{group}"),
        })
    }

    /// Starts containerd, after an end of it; what still runs goes on.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self, host: &Host) -> Result<()> {
        let cri = self.cri.clone();
        // It exists from the first pod on; a capture wants it now.
        if host.netns.link_index(BRIDGE).is_err() {
            host.netns.ip(&format!(
                "link add {BRIDGE} type bridge\nlink set {BRIDGE} up promisc on\n"
            ))?;
        }
        self.daemon.start(&host.netns)?;
        self.daemon.wait_until(
            "containerd and its network being ready",
            START_PATIENCE,
            || {
                let conditions = cri.conditions()?;
                Ok(!conditions.is_empty() && conditions.iter().all(|c| c.status))
            },
        )
    }

    /// Waits until new pods' networks are made with a CNI plugin of this name.
    ///
    /// # Errors
    /// When [`wait::PATIENCE`] is over.
    pub fn wait_for_plugin(&self, name: &str) -> Result<()> {
        wait::until_true("the runtime to use the plugin", wait::PATIENCE, || {
            Ok(self.cri.network_in_use()?.contains(name))
        })
    }

    /// Takes away what does not survive the machine's end: all processes, the pods' cgroups and
    /// namespaces, the bridge, and the folder for state. Images, records of sandboxes and addresses
    /// stay, as on a disk.
    ///
    /// # Errors
    /// If something can't be removed.
    pub fn power_off(&mut self, host: &Host) -> Result<()> {
        self.daemon.kill9()?;
        for mount in cgroup::mount_points()? {
            let pods = self.pods_in_cgroups();
            cgroup::remove(&mount.join(pods.trim_start_matches('/')))?;
        }
        self.daemon.kill_all()?;
        release(&host.folder);
        fs::remove_dir_all(self.folders.state()).context("removing the runtime's state")?;
        host.netns.ip(&format!("link del {BRIDGE}\n"))
    }

    fn load_image(&self) -> Result<()> {
        let archive = image::make(&self.folders.images())?;
        let mut import = Command::new(programs::find("ctr".as_ref())?);
        import.arg("--address").arg(self.folders.socket());
        import.args(["--namespace", "k8s.io", "images", "import"]);
        run(import.arg(archive))?;
        // The interface hears of images by events.
        wait::until_true("the images to be known", wait::PATIENCE, || {
            Ok(self.cri.has_image(image::PAUSE)? && self.cri.has_image(image::APP)?)
        })
    }

    /// Captures all that passes the node's bridge, from now on: what goes from pod to pod, to the
    /// node, and through it.
    ///
    /// # Errors
    /// If a packet socket can't be had.
    pub fn capture(host: &Host) -> Result<Capture> {
        Capture::start(&host.netns, BRIDGE)
    }

    /// The cgroups of pods, in all hierarchies, that are still there.
    ///
    /// # Errors
    /// If they can't be listed.
    pub fn pod_cgroups(&self) -> Result<Vec<String>> {
        let mut found = BTreeSet::new();
        for mount in cgroup::mount_points()? {
            let folder = mount.join(self.pods_in_cgroups().trim_start_matches('/'));
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("pod") {
                    found.insert(name);
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Where kubelet puts pods of the class `Burstable`.
    pub(crate) fn pods_in_cgroups(&self) -> String {
        format!("{}/kubepods/burstable", self.cgroup_root)
    }

    /// The addresses that are given out.
    #[must_use]
    pub fn leases(&self) -> Vec<String> {
        let folder = self.folders.leases().join(&self.network.name);
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect()
    }

    /// What is mounted in its folder for state: namespaces and containers.
    ///
    /// # Errors
    /// If mounts can't be read.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let state = self.folders.state();
        let mut mounts = leftovers::mounts_below(&state)?;
        // Which may be a tmpfs, as /run is.
        mounts.retain(|mount| Path::new(mount) != state);
        Ok(mounts)
    }

    /// Checks that nothing is left of any pod.
    ///
    /// # Errors
    /// If something is, with what it is.
    pub fn check_empty(&self) -> Result<()> {
        let sandboxes = self.cri.sandboxes()?;
        ensure!(sandboxes.is_empty(), "sandboxes are left: {sandboxes:?}");
        let lists = [
            ("addresses", self.leases()),
            ("mounts", self.mounts()?),
            ("cgroups", self.pod_cgroups()?),
        ];
        for (what, left) in lists {
            ensure!(left.is_empty(), "{what} are left: {left:?}");
        }
        let shims = shims_of(&self.folders.socket())?;
        ensure!(shims.is_empty(), "shims are left: {shims:?}");
        Ok(())
    }
}

/// A node's network: half of the block that the other hosts route to it.
fn network(lab: &Lab, host: &Host, addresses: u8) -> Network {
    let (gateway, _) = host.pod_addresses(1);
    let [a, b, c, _] = gateway.octets();
    let last = FIRST_ADDRESS.saturating_add(addresses).min(254) - 1;
    Network {
        name: format!("{}-{}", lab.prefix(), host.name()),
        subnet: format!("{a}.{b}.{c}.{HALF}/25"),
        range: [FIRST_ADDRESS, last].map(|d| format!("{a}.{b}.{c}.{d}")),
    }
}

/// Processes whose command line names this socket, but for the runtime itself.
fn shims_of(socket: &Path) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("containerd-shim") && line.contains(&*socket.to_string_lossy()) {
            found.push(pid);
        }
    }
    Ok(found)
}
