//! Pods as they were added, kept in `<run-dir>/pods/<namespace>_<name>.json`: enough to
//! take them up again with control away, and to clean up after them.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_common::MAX_PODS;
use mesh_core::model::Workload;
use serde::{Deserialize, Serialize};

use super::admin::PodAdd;
use super::boot;
use super::config::is_name;
use super::join::{chain, write_until_boot};
use super::netns::NetnsId;
use super::until::Until;

/// Layout of a record; one that this agent doesn't know is left alone.
const RECORD_VERSION: u32 = 1;

/// A pod's name in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct PodKey {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl PodKey {
    /// Both parts become parts of file and cgroup names, so they are checked.
    pub(super) fn new(namespace: &str, name: &str) -> Result<Self, String> {
        for part in [namespace, name] {
            if !is_name(part) {
                return Err(format!(
                    "{part:?} is no Kubernetes name (lower-case letters, digits, '-' and '.')"
                ));
            }
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Name of the pod's cgroup, and of its record.
    pub(super) fn joined(&self) -> String {
        format!("{}_{}", self.namespace, self.name)
    }

    /// Its uid in discovery.
    pub(super) fn workload_uid(&self, cluster: &str) -> String {
        format!("{cluster}//v1/Pod/{}/{}", self.namespace, self.name)
    }
}

/// What of a workload decides how its pod is enrolled. Another goal is another enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Goal {
    /// Workload uid.
    pub(super) uid: String,
    /// SPIFFE ID.
    pub(super) identity: String,
    /// The pod's addresses.
    pub(super) addresses: Vec<IpAddr>,
}

impl Goal {
    /// Whether a pod that is enrolled for this needs nothing done to be enrolled for `other`.
    /// Who lists its addresses, a network plugin or kubelet, decides on their order.
    pub(super) fn is(&self, other: &Self) -> bool {
        let addresses = |goal: &Self| goal.addresses.iter().copied().collect::<BTreeSet<_>>();
        self.uid == other.uid
            && self.identity == other.identity
            && addresses(self) == addresses(other)
    }
}

impl From<&Workload> for Goal {
    fn from(workload: &Workload) -> Self {
        Self {
            uid: workload.uid.to_string(),
            identity: workload.identity.to_string(),
            addresses: workload.addresses.clone(),
        }
    }
}

/// What a worker is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Part {
    /// It takes what comes.
    Serving,
    /// It is to replace the one that serves, and is not ready yet.
    Next,
    /// It was replaced and finishes what it has, until then.
    Draining(Until),
}

/// Which of a pod's processes is what, for the next supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownWorker {
    pub(super) pid: i32,
    /// When it was started, as `/proc/PID/stat` says: a process id is used again.
    pub(super) started: u64,
    pub(super) part: Part,
}

/// What was done to the kernel and the machine for a pod. Written before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Placed {
    pub(super) goal: Goal,
    /// `POD_*` flags without what depends on the worker's listeners.
    pub(super) flags: u32,
    /// Node-side devices with a wall.
    pub(super) walls: Vec<u32>,
    /// It is enrolled while it runs, and has no walls yet: they come after capture.
    #[serde(default)]
    pub(super) unwalled: bool,
    /// Ports added to `ip_local_reserved_ports`.
    pub(super) ports_added: Vec<u16>,
    /// The worker's certificate, PEM, leaf first.
    pub(super) certificate: Vec<String>,
}

/// A pod that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PodRecord {
    version: u32,
    pub(super) key: PodKey,
    pub(super) netns: PathBuf,
    pub(super) netns_id: NetnsId,
    pub(super) slot: u32,
    pub(super) placed: Option<Placed>,
    /// Its workers while there is more than one; written before one is told to drain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) workers: Vec<KnownWorker>,
    /// What was said of the pod when it was added.
    #[serde(flatten)]
    pub(super) origin: Origin,
}

/// How a pod came to be known; see [`PodAdd`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Origin {
    /// The pod's UID; empty where it is not known.
    pub(super) pod_uid: String,
    /// The runtime's id of its sandbox; empty where no runtime has told.
    pub(super) container: String,
    /// The addresses that the runtime's network plugins gave it.
    pub(super) given: Vec<IpAddr>,
    /// Found running.
    pub(super) running: bool,
}

impl Origin {
    /// Whether nobody is waited for to say that the pod is gone.
    pub(super) fn comes_and_goes(&self) -> bool {
        self.running || !self.container.is_empty()
    }

    /// Whether who speaks of this sandbox means this pod; empty: of any.
    pub(super) fn is_sandbox(&self, container: &str) -> bool {
        container.is_empty() || self.container.is_empty() || self.container == container
    }
}

impl From<&PodAdd> for Origin {
    fn from(pod: &PodAdd) -> Self {
        Self {
            pod_uid: pod.uid.clone(),
            container: pod.container.clone(),
            given: pod.addresses.clone(),
            running: pod.running,
        }
    }
}

impl PodRecord {
    pub(super) fn new(
        key: PodKey,
        netns: PathBuf,
        netns_id: NetnsId,
        slot: u32,
        origin: Origin,
    ) -> Self {
        Self {
            version: RECORD_VERSION,
            key,
            netns,
            netns_id,
            slot,
            placed: None,
            workers: Vec::new(),
            origin,
        }
    }

    /// Reads a record. What it names becomes names of files and cgroups, so it is checked again.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if record.version != RECORD_VERSION {
            return Err(format!(
                "version {}, this agent knows {RECORD_VERSION}",
                record.version
            ));
        }
        PodKey::new(&record.key.namespace, &record.key.name)?;
        if record.slot >= MAX_PODS {
            return Err(format!("slot {}, there are {MAX_PODS}", record.slot));
        }
        Ok(record)
    }
}

/// The folder of the records.
#[derive(Clone, Debug)]
pub(super) struct Records {
    folder: PathBuf,
}

impl Records {
    /// Opens the folder, or makes it. What is in it of an earlier boot is forgotten.
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let folder = run_dir.join("pods");
        std::fs::create_dir_all(&folder)?;
        let forgotten = boot::forget_others(run_dir, &folder)?;
        if forgotten > 0 {
            tracing::info!(
                forgotten,
                "the machine was booted: the pods of before are to be added anew"
            );
        }
        Ok(Self { folder })
    }

    fn path(&self, key: &PodKey) -> PathBuf {
        self.folder.join(format!("{}.json", key.joined()))
    }

    /// Every record. One that can't be read is named in the second list, and its pod stays
    /// as it is: captured, without a supervisor.
    pub(super) fn load(&self) -> io::Result<(Vec<PodRecord>, Vec<String>)> {
        let (mut records, mut faults) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let read = std::fs::read(&path).map_err(|e| e.to_string());
            match read.and_then(|bytes| PodRecord::read(&bytes)) {
                Ok(record) => records.push(record),
                Err(why) => faults.push(format!("{}: {why}", path.display())),
            }
        }
        Ok((records, faults))
    }

    pub(super) fn save(&self, record: &PodRecord) -> Result<(), String> {
        let bytes = serde_json::to_vec_pretty(record).map_err(|e| e.to_string())?;
        write_until_boot(&self.path(&record.key), &bytes).map_err(|e| chain(&e))
    }

    pub(super) fn delete(&self, key: &PodKey) -> io::Result<()> {
        match std::fs::remove_file(self.path(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// The lowest slot that is free.
pub(super) fn free_slot(taken: impl IntoIterator<Item = u32>) -> Option<u32> {
    let taken: BTreeSet<u32> = taken.into_iter().collect();
    (0..MAX_PODS).find(|slot| !taken.contains(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> PodRecord {
        let id = NetnsId {
            device: 4,
            inode: 4_026_532_000,
            cookie: 77,
        };
        let key = PodKey::new("shop", name).unwrap();
        PodRecord::new(key, "/run/netns/cart".into(), id, 3, Origin::default())
    }

    #[test]
    fn records_survive_and_a_broken_one_harms_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path()).unwrap();
        let mut cart = record("cart");
        cart.placed = Some(Placed {
            goal: Goal {
                uid: "u".to_owned(),
                identity: "spiffe://cluster.local/ns/shop/sa/cart".to_owned(),
                addresses: vec!["10.0.0.2".parse().unwrap()],
            },
            flags: 1,
            walls: vec![9],
            unwalled: true,
            ports_added: vec![15001],
            certificate: Vec::new(),
        });
        records.save(&cart).unwrap();
        let elsewhere = serde_json::to_string(&cart).unwrap();
        let elsewhere = elsewhere.replace("\"shop\"", "\"../shop\"");
        let bad = folder.path().join("pods/shop_bad.json");
        for text in [b"{".as_slice(), b"\xff", elsewhere.as_bytes()] {
            std::fs::write(&bad, text).unwrap();
            let (found, faults) = records.load().unwrap();
            assert_eq!(found, [cart.clone()]);
            assert!(
                faults.len() == 1 && faults[0].contains("shop_bad.json"),
                "{faults:?}"
            );
        }
        std::fs::remove_file(bad).unwrap();
        records.delete(&cart.key).unwrap();
        records.delete(&cart.key).unwrap();
        assert!(records.load().unwrap().0.is_empty());
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for name in ["", "..", "a/b", "A", "a_b", ".hidden"] {
            assert!(PodKey::new("shop", name).is_err(), "{name:?}");
        }
        assert_eq!(
            PodKey::new("shop", "cart-0").unwrap().joined(),
            "shop_cart-0"
        );
    }

    #[test]
    fn slots_are_used_again_and_run_out() {
        assert_eq!(free_slot([0, 1, 3]), Some(2));
        assert_eq!(free_slot(0..MAX_PODS), None);
    }
}
