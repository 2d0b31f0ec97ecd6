//! What every pod's task uses: the capture, the cgroups, the sealed image, discovery.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::budget::NodeBudget;
use super::config::Config;
use super::control::Control;
use super::discovery::Discovery;
use super::kernel_rules::KernelRules;
use super::pods::{PodKey, Records};
use super::report::{KubeletReport, PodReport};
use super::roll::Roll;
use super::trust::TrustStore;
use super::workers::Command;
use crate::capture::Capture;
use crate::sandbox::cgroup::MeshCgroup;
use crate::sandbox::{self, ImageDigest, ImageId, WorkerImage};

/// The parts that all tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) mesh_cgroup: MeshCgroup,
    pub(super) image: WorkerImage,
    pub(super) discovery: Arc<Discovery>,
    pub(super) control: Arc<Control>,
    pub(super) trust: Arc<TrustStore>,
    pub(super) records: Records,
    /// Some pod's report has changed.
    pub(super) news: Arc<watch::Sender<()>>,
    pub(super) kernel: KernelRules,
    /// What of the supervisor's and control's work the workers share.
    pub(super) work: NodeBudget,
    pub(super) roll: Roll,
    /// What is in the images of workers that were adopted.
    images: Mutex<HashMap<ImageId, ImageDigest>>,
    /// Why the CNI plugin is not in place; `None` where it is, or none is to be.
    pub(super) cni_fault: watch::Sender<Option<String>>,
    /// Whose connections pass as probes.
    pub(super) kubelet: watch::Sender<KubeletReport>,
    capture: Mutex<Capture>,
    pods: Mutex<BTreeMap<PodKey, PodHandle>>,
}

/// A pod as the other tasks see it.
#[derive(Clone, Debug)]
pub(super) struct PodHandle {
    pub(super) slot: u32,
    pub(super) report: watch::Receiver<PodReport>,
    /// The pod's task; `None` when it has none.
    pub(super) commands: Option<mpsc::Sender<Command>>,
}

impl Shared {
    pub(super) fn new(
        config: Arc<Config>,
        capture: Capture,
        mesh_cgroup: MeshCgroup,
        image: WorkerImage,
        records: Records,
    ) -> Self {
        let discovery = Discovery::new(&config.node, &config.resolvers);
        let trust = TrustStore::open(&config);
        let cni_fault = config
            .cni
            .as_ref()
            .map(|_| "it is being installed".to_owned());
        Self {
            cni_fault: watch::Sender::new(cni_fault),
            kubelet: watch::Sender::default(),
            config,
            mesh_cgroup,
            image,
            discovery: Arc::new(discovery),
            control: Control::new(trust.clone()),
            trust,
            records,
            news: Arc::new(watch::Sender::new(())),
            kernel: KernelRules::default(),
            work: NodeBudget::new(Instant::now()),
            roll: Roll::default(),
            images: Mutex::default(),
            capture: Mutex::new(capture),
            pods: Mutex::default(),
        }
    }

    /// Whether a worker runs another program than those that are started now. What can't be told
    /// is taken for another.
    pub(super) fn is_outdated(&self, pid: i32) -> bool {
        let Ok(id) = sandbox::image_id(pid) else {
            return true;
        };
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let known = images.get(&id).copied();
        let digest = known.or_else(|| sandbox::image_digest(pid).ok());
        images.extend(digest.map(|digest| (id, digest)));
        digest != Some(self.image.digest())
    }

    /// The capture. Not to be held across an await.
    pub(super) fn capture(&self) -> MutexGuard<'_, Capture> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every pod that was added. Not to be held across an await.
    pub(super) fn pods(&self) -> MutexGuard<'_, BTreeMap<PodKey, PodHandle>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod in a slot, for logs.
    pub(super) fn pod_in(&self, slot: u32) -> Option<PodKey> {
        let pods = self.pods();
        pods.iter()
            .find(|(_, pod)| pod.slot == slot)
            .map(|(key, _)| key.clone())
    }

    /// Uid of the worker in a slot.
    pub(super) fn worker_uid(&self, slot: u32) -> u32 {
        self.config.uid_base + slot
    }
}
