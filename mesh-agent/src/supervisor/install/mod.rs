//! Keeps the CNI plugin where the container runtime finds it: its binary in one folder, its entry in
//! another, in a configuration of the agent's own. That is a copy of the pods' network's, and comes
//! before it by name. Installers of network plugins write theirs anew whenever they like: the folders
//! are watched, and the copy follows.
//!
//! While a supervisor is away, the copy stays, whatever others write, and pods are refused. What can't be
//! put in place is told, and the agent is not ready: pods that start then may not be enrolled before they
//! run.

mod conflist;
mod files;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use metrics::{counter, gauge};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout};

use super::config::CniFolders;
use super::shared::Shared;
use crate::cni::{ENTRY_TYPE, PluginConfig};
use files::FilesError;

/// How often it is looked although nothing is heard: a folder that is made anew is not watched yet,
/// and a disk that was full says nothing when it is not.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Least time between two looks: whoever puts back the opposite all the time is given way to for so
/// long.
const PAUSE: Duration = Duration::from_millis(100);

/// The installation.
#[derive(Debug)]
pub(super) struct Installer {
    folders: CniFolders,
    plugin: PathBuf,
    entry: Value,
    changes: Inotify,
    /// The same, to wait for.
    heard: AsyncFd<OwnedFd>,
    /// The binary, as it was compared.
    binary: Option<files::Marks>,
    /// It has been in place once: what is missing now was taken away.
    settled: bool,
}

impl Installer {
    /// Begins to watch. To be called before the supervisor confines itself, and on its runtime.
    ///
    /// # Errors
    /// If there is no plugin beside this program, or the kernel has no inotify.
    pub(super) fn new(folders: CniFolders, config: &PluginConfig) -> anyhow::Result<Self> {
        let agent = std::env::current_exe().context("finding this program's folder")?;
        let plugin = agent.with_file_name(ENTRY_TYPE);
        std::fs::metadata(&plugin).with_context(|| {
            let plugin = plugin.display();
            format!(
                "{plugin}: the CNI plugin, which is to be installed, is not beside this program"
            )
        })?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .context("making an inotify instance")?;
        let heard = inotify.as_fd().try_clone_to_owned();
        let heard = heard.context("keeping an inotify instance")?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced or closed in it.
        let heard = unsafe { AsyncFd::register_with_interest(heard, Interest::READABLE) }
            .context("following an inotify instance")?;
        Ok(Self {
            folders,
            plugin,
            entry: conflist::entry(config),
            heard,
            changes: inotify,
            binary: None,
            settled: false,
        })
    }

    /// Keeps all in place, for ever.
    pub(super) async fn keep(mut self, shared: Arc<Shared>) {
        loop {
            let looked = Instant::now();
            self.look(&shared);
            let _ = timeout(LOOK_EVERY, self.changed()).await;
            sleep_until(looked + PAUSE).await;
            self.drain();
        }
    }

    /// Puts in place what isn't.
    fn look(&mut self, shared: &Shared) {
        self.watch();
        let outcome = self.put();
        let fault = outcome.err().map(|e| e.to_string());
        gauge!("nodemesh_cni_installed").set(f64::from(u8::from(fault.is_none())));
        let told = shared.cni_fault.borrow().clone();
        if fault != told {
            match &fault {
                Some(why) => {
                    counter!("nodemesh_cni_install_faults_total").increment(1);
                    tracing::error!(
                        why,
                        "the CNI plugin is not in place: pods that start now are not enrolled before they run; trying on"
                    );
                }
                None => tracing::info!("the CNI plugin is in place"),
            }
            shared.cni_fault.send_replace(fault);
            // Control is told whether this agent is ready.
            shared.news.send_replace(());
        }
    }

    fn put(&mut self) -> Result<(), FilesError> {
        // First: an entry without a binary would refuse every pod.
        let binary = files::put_binary(&self.plugin, &self.folders.bin, &mut self.binary)?;
        self.changed_to("binary", binary, &self.folders.bin.join(ENTRY_TYPE));
        let (network, entry) = files::put_entry(&self.folders.conf, &self.entry)?;
        let own = self.folders.conf.join(files::OWN);
        self.changed_to("entry", entry, &own);
        if entry {
            tracing::info!(network = %network.display(), "pods' networks are made as this one says, and enrolled");
        }
        self.settled = true;
        Ok(())
    }

    fn changed_to(&self, what: &'static str, changed: bool, path: &Path) {
        if !changed {
            return;
        }
        counter!("nodemesh_cni_writes_total", "what" => what).increment(1);
        let path = path.display();
        match self.settled {
            false => tracing::info!(%path, what, "the CNI plugin is installed"),
            true => {
                tracing::warn!(%path, what, "the CNI plugin's installation was changed, or the network's configuration: written anew");
            }
        }
    }

    /// Watches the folders, anew if they are others by now. What can't be watched is looked at by
    /// the clock.
    fn watch(&self) {
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        for folder in [&self.folders.bin, &self.folders.conf] {
            if let Err(e) = self.changes.add_watch(folder, changes) {
                tracing::debug!(folder = %folder.display(), error = %e, "not watched");
            }
        }
    }

    async fn changed(&self) {
        if let Ok(mut ready) = self.heard.readable().await {
            ready.clear_ready();
        }
    }

    /// What was heard until now is looked at next, the own writes included.
    fn drain(&self) {
        while self
            .changes
            .read_events()
            .is_ok_and(|heard| !heard.is_empty())
        {}
    }
}

/// Takes the plugin out of the runtime's folders: pods start without the mesh from then on.
pub(super) fn take_out(folders: &CniFolders) -> Vec<String> {
    let faults = files::take_out(&folders.bin, &folders.conf);
    faults.iter().map(ToString::to_string).collect()
}
