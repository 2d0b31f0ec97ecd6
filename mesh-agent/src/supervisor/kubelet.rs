//! Who kubelet is on this node: its cgroup, which is made anew whenever its service is started.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use tokio::time::{MissedTickBehavior, interval};

use super::report::KubeletReport;
use super::shared::Shared;
use crate::capture::{CgroupRef, socket_netns_cookie};

/// How often kubelet's cgroup is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What names of cgroups of pods have in common (see `kubepods`).
const PODS: &str = "kubepods";

/// What was found, or why nothing was.
type Found = Result<(PathBuf, CgroupRef), String>;

/// Looks for kubelet's cgroup, and tells the kernel of it.
pub(super) struct Kubelet {
    shared: Arc<Shared>,
    /// Of the network namespace that probes come from, which is this process's.
    node_netns_cookie: u64,
    mount: PathBuf,
    told: Option<Found>,
}

impl Kubelet {
    /// # Errors
    /// If this process's network namespace doesn't say its cookie.
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let mesh = shared.mesh_cgroup.folder();
        let mount = mesh.parent().map(Path::to_owned).unwrap_or_default();
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        Ok(Self {
            node_netns_cookie: socket_netns_cookie(socket.as_fd())?,
            shared,
            mount,
            told: None,
        })
    }

    pub(super) async fn keep_looking(mut self) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.look();
        }
    }

    /// Looks once. What is as it was is told to nobody.
    pub(super) fn look(&mut self) {
        let found = find(&self.mount, &self.shared.config.kubelet_cgroups);
        if self.told.as_ref() == Some(&found) {
            return;
        }
        let cgroup = found.as_ref().ok().map(|(_, cgroup)| *cgroup);
        let mut capture = self.shared.capture();
        let set = capture.set_kubelet(self.node_netns_cookie, cgroup);
        drop(capture);
        if let Err(e) = set {
            // What was said before stays; the next look tries again.
            tracing::error!(error = %e, "the kernel could not be told which cgroup is kubelet's: its probes may be refused");
            return;
        }
        self.tell(&found);
        self.told = Some(found);
    }

    fn tell(&self, found: &Found) {
        let (cgroup, fault) = match found {
            Ok((path, of)) => {
                let (path, id) = (format!("/{}", path.display()), of.id);
                tracing::info!(
                    cgroup = path,
                    id,
                    "kubelet's probes pass: this is its cgroup"
                );
                (path, String::new())
            }
            Err(why) => {
                let off = self.shared.config.kubelet_cgroups.is_empty();
                match off {
                    true => tracing::info!(why, "no probes of kubelet's pass by themselves"),
                    false => tracing::warn!(
                        why,
                        "no probes of kubelet's pass by themselves: each pod needs a policy for them until its cgroup is there"
                    ),
                }
                (String::new(), why.clone())
            }
        };
        gauge!("nodemesh_kubelet_found").set(f64::from(u8::from(found.is_ok())));
        let report = KubeletReport { cgroup, fault };
        self.shared.kubelet.send_replace(report);
    }
}

/// The first of these cgroups, given from the root of the hierarchy, that is there.
fn find(mount: &Path, candidates: &[PathBuf]) -> Found {
    if candidates.is_empty() {
        return Err("--kubelet-cgroup none".to_owned());
    }
    for path in candidates {
        let folder = mount.join(path);
        let Ok(metadata) = fs::metadata(&folder) else {
            continue;
        };
        if let Some(pods) = pods_below(&folder) {
            return Err(format!(
                "/{} has the cgroups of pods in it ({pods}), so it is not kubelet's own: name that by --kubelet-cgroup",
                path.display()
            ));
        }
        let level = u32::try_from(path.components().count()).unwrap_or(u32::MAX);
        let id = metadata.ino();
        return Ok((path.clone(), CgroupRef { id, level }));
    }
    let tried = candidates.iter().map(|path| format!("/{}", path.display()));
    let tried: Vec<String> = tried.collect();
    Err(format!(
        "no cgroup of kubelet's is there ({}): name it by --kubelet-cgroup",
        tried.join(", ")
    ))
}

/// A cgroup of pods right below: whoever takes that for kubelet's takes pods of the node's network for
/// kubelet.
fn pods_below(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder).ok()?.flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| name.contains(PODS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_there_is_kubelets_unless_pods_are_in_it() {
        let mount = tempfile::tempdir().unwrap();
        let candidates = ["a/kubelet.service", "b"].map(PathBuf::from);
        let missing = find(mount.path(), &candidates).unwrap_err();
        assert!(missing.contains("/a/kubelet.service, /b"), "{missing}");
        fs::create_dir_all(mount.path().join("b")).unwrap();
        let (path, cgroup) = find(mount.path(), &candidates).unwrap();
        assert_eq!((path, cgroup.level), (PathBuf::from("b"), 1));
        fs::create_dir_all(mount.path().join("a/kubelet.service/own")).unwrap();
        let (path, cgroup) = find(mount.path(), &candidates).unwrap();
        let id = fs::metadata(mount.path().join(&path)).unwrap().ino();
        assert_eq!(cgroup, CgroupRef { id, level: 2 });
        let pods = mount.path().join("a/kubelet.service/x-kubepods.slice");
        fs::create_dir(&pods).unwrap();
        let wrong = find(mount.path(), &candidates).unwrap_err();
        assert!(wrong.contains("x-kubepods.slice"), "{wrong}");
        assert!(find(mount.path(), &[]).is_err());
    }
}
