//! What containerd and the CNI plugins are told: everything private to one node of one lab.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::image::PAUSE;

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Name of the network configuration: the first in its folder, as installers of plugins look for it.
const CONFLIST: &str = "10-lab.conflist";

/// The folders of one node's runtime.
#[derive(Clone, Debug)]
pub struct Folders {
    base: PathBuf,
}

impl Folders {
    pub(super) fn make(base: PathBuf) -> Result<Self> {
        let folders = Self { base };
        for folder in ["conf", "logs", "images"] {
            fs::create_dir_all(folders.base.join(folder))?;
        }
        fs::create_dir_all(folders.plugins())?;
        for plugin in ["bridge", "host-local", "loopback"] {
            let from = Path::new(PLUGINS).join(plugin);
            fs::copy(&from, folders.plugins().join(plugin))
                .with_context(|| format!("copying the CNI plugin {}", from.display()))?;
        }
        Ok(folders)
    }

    /// The runtime's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.base.join("containerd.sock")
    }

    /// The CNI plugins' programs: copies, to be removed and replaced as a test likes.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.base.join("bin")
    }

    /// The folder of network configurations.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.base.join("conf")
    }

    /// The network configuration that is in use.
    #[must_use]
    pub fn conflist(&self) -> PathBuf {
        self.networks().join(CONFLIST)
    }

    /// The addresses that are given out: a file for each.
    #[must_use]
    pub fn leases(&self) -> PathBuf {
        self.base.join("leases")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.base.join("logs")
    }

    pub(super) fn images(&self) -> PathBuf {
        self.base.join("images")
    }

    /// What lives as long as the boot: mounts, tasks, namespaces.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.base.join("state")
    }

    pub(super) fn configuration(&self) -> PathBuf {
        self.base.join("config.toml")
    }

    /// Writes the runtime's own configuration.
    pub(super) fn configure(&self) -> Result<()> {
        let base = self.base.display();
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        let plugins = self.plugins();
        let content = format!(
            "version = 2\n\
             root = \"{base}/root\"\n\
             state = \"{base}/state\"\n\
             disabled_plugins = [{unused}]\n\
             [grpc]\n\
             address = \"{base}/containerd.sock\"\n\
             [{cri}]\n\
             sandbox_image = \"{PAUSE}\"\n\
             # A machine without CAP_SYS_RESOURCE can't lower scores.\n\
             restrict_oom_score_adj = true\n\
             netns_mounts_under_state_dir = true\n\
             [{cri}.cni]\n\
             bin_dir = \"{plugins}\"\n\
             conf_dir = \"{base}/conf\"\n\
             [{cri}.containerd.runtimes.runc]\n\
             runtime_type = \"io.containerd.runc.v2\"\n\
             [{cri}.containerd.runtimes.runc.options]\n\
             Root = \"{base}/state/runc\"\n\
             # An initramfs can't be pivoted away.\n\
             NoPivotRoot = {initramfs}\n",
            initramfs = on_initramfs()?,
            plugins = plugins.display(),
            unused = UNUSED
                .map(|name| format!("\"io.containerd.{name}\""))
                .join(", "),
        );
        fs::write(self.configuration(), content).context("writing containerd's configuration")
    }

    /// Puts a plugin's program where the runtime looks for it, at once, as an installer does.
    ///
    /// # Errors
    /// If it isn't built, or can't be copied.
    pub fn install_plugin(&self, program: &Path) -> Result<()> {
        let name = program.file_name().context("a program's name")?;
        let staged = self.base.join("plugin.staged");
        fs::copy(program, &staged)
            .and_then(|_| fs::rename(&staged, self.plugins().join(name)))
            .with_context(|| format!("installing {}", program.display()))
    }

    /// Writes a network configuration, at once, as an installer does; more plugins are chained
    /// after the bridge.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_conflist(&self, network: &Network, more: &[Value]) -> Result<()> {
        let mut plugins = vec![network.bridge(&self.leases())];
        plugins.extend_from_slice(more);
        let list = json!({
            "cniVersion": "0.4.0",
            "name": network.name,
            "plugins": plugins,
        });
        // In the same folder: containerd 1.6 hears of what goes from there, not of what comes.
        let staged = self.networks().join(".staged");
        fs::write(&staged, serde_json::to_vec_pretty(&list)?)
            .and_then(|()| fs::rename(&staged, self.conflist()))
            .context("writing the network configuration")
    }
}

/// Whether the machine's root is an initramfs.
fn on_initramfs() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let mut roots = mounts.lines().map(|line| line.split(' '));
    Ok(roots.any(|mut words| words.next() == Some("rootfs") && words.next() == Some("/")))
}

/// What this runtime needs no snapshots, tracing or image policy from.
const UNUSED: [&str; 6] = [
    "internal.v1.opt",
    "internal.v1.tracing",
    "snapshotter.v1.aufs",
    "snapshotter.v1.btrfs",
    "snapshotter.v1.devmapper",
    "snapshotter.v1.zfs",
];

/// A node's pod network.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its name; files outside the lab's folder begin with it.
    pub(super) name: String,
    /// Its block, such as `10.202.10.128/25`.
    pub(super) subnet: String,
    /// The first and the last address for pods.
    pub(super) range: [String; 2],
}

impl Network {
    fn bridge(&self, leases: &Path) -> Value {
        let [first, last] = &self.range;
        json!({
            "type": "bridge",
            "bridge": super::BRIDGE,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": leases,
                "ranges": [[{"subnet": self.subnet, "rangeStart": first, "rangeEnd": last}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        })
    }
}
