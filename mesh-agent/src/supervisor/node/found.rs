//! Pods that run and that nobody has added: they are found by their processes.
//!
//! A pod that starts has no process before its network is made and the plugin has added it. So
//! what is found here ran before its namespace was enrolled, or started past the plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use metrics::counter;

use super::Node;
use crate::supervisor::admin::{AddFault, PodAdd};
use crate::supervisor::kubepods::{processes_by_pod, sandbox_of};
use crate::supervisor::netns::{self, Netns, NetnsError};
use crate::supervisor::pods::PodKey;
use crate::supervisor::processes::netns_path;

/// Most network namespaces that are looked into for one pod: its processes can make more.
const MAX_NAMESPACES: usize = 8;

/// A pod of this node that is to be in the mesh, and that nobody has added.
struct Missing {
    key: PodKey,
    uid: String,
    addresses: Vec<IpAddr>,
}

/// Why a running pod is not taken.
enum Refusal {
    /// It has no process (yet).
    NotRunning,
    Because(&'static str, String),
}

/// Refusals that were told, by pod.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<PodKey, String>);

impl Node {
    /// Adds the pods that run.
    pub(super) fn find_running(&mut self) {
        let missing = self.missing();
        let keys: BTreeSet<&PodKey> = missing.iter().map(|pod| &pod.key).collect();
        self.told.0.retain(|key, _| keys.contains(key));
        if missing.is_empty() {
            return;
        }
        let processes = match processes_by_pod() {
            Ok(processes) => processes,
            Err(e) => {
                tracing::error!(error = %e, "can't look for running pods: /proc can't be read");
                return;
            }
        };
        for pod in missing {
            let of_it = processes.get(&pod.uid).map_or(&[][..], Vec::as_slice);
            let taken = find_netns(&pod, of_it).and_then(|netns| self.add_found(&pod, netns));
            if let Err(Refusal::Because(kind, why)) = taken {
                self.tell_refusal(pod.key, kind, why);
            }
        }
    }

    fn missing(&self) -> Vec<Missing> {
        let discovery = &self.shared.discovery;
        let Some(view) = discovery.known() else {
            return Vec::new();
        };
        let here = view.mesh.on_node(&self.shared.config.node);
        let here =
            here.filter(|w| w.enrolled() && !w.pod_uid.is_empty() && !w.addresses.is_empty());
        let named = here.filter_map(|workload| {
            let key = PodKey::new(workload.identity.namespace(), &workload.name).ok()?;
            Some(Missing {
                key,
                uid: workload.pod_uid.clone(),
                addresses: workload.addresses.clone(),
            })
        });
        named
            .filter(|pod| !self.pods.contains_key(&pod.key))
            .collect()
    }

    fn add_found(&mut self, pod: &Missing, netns: PathBuf) -> Result<(), Refusal> {
        let found = PodAdd {
            namespace: pod.key.namespace.clone(),
            name: pod.key.name.clone(),
            netns,
            uid: pod.uid.clone(),
            running: true,
            ..PodAdd::default()
        };
        match self.add(&found) {
            Ok(_) => {
                counter!("nodemesh_pods_found_total").increment(1);
                tracing::info!(pod = %pod.key, netns = %found.netns.display(), "found running");
                Ok(())
            }
            Err(AddFault::Refused(why) | AddFault::Superseded(why)) => {
                Err(Refusal::Because("not-added", why))
            }
        }
    }

    fn tell_refusal(&mut self, pod: PodKey, kind: &'static str, why: String) {
        if self.told.0.get(&pod) == Some(&why) {
            return;
        }
        counter!("nodemesh_pods_found_refused_total", "reason" => kind).increment(1);
        tracing::error!(%pod, why, "a running pod of an enrolled namespace can't be taken into the mesh; trying on");
        self.told.0.insert(pod, why);
    }
}

/// The network namespace of a pod's processes that has the pod's addresses.
fn find_netns(pod: &Missing, pids: &[i32]) -> Result<PathBuf, Refusal> {
    if let Some(runtime) = sandbox_of(pids) {
        let why = format!(
            "its runtime is {runtime}: its sockets are in a kernel of their own, where they can't be captured; run it with another runtime class, or take its namespace out of the mesh"
        );
        return Err(Refusal::Because("sandboxed", why));
    }
    let mut seen = BTreeSet::new();
    let mut last = Refusal::NotRunning;
    for pid in pids {
        let path = netns_path(*pid);
        let netns = match Netns::open(&path) {
            Ok(netns) => netns,
            // It has ended.
            Err(NetnsError::Open { .. }) => continue,
            Err(e @ NetnsError::NodesOwn(_)) => {
                last = Refusal::Because("host-network", e.to_string());
                continue;
            }
            Err(e) => {
                last = Refusal::Because("namespace", e.to_string());
                continue;
            }
        };
        if !seen.insert(netns.id.cookie) {
            continue;
        }
        if seen.len() > MAX_NAMESPACES {
            break;
        }
        match netns::inspect(&netns, &pod.addresses) {
            Ok(_) => return Ok(path),
            Err(e) => last = Refusal::Because("namespace", e.to_string()),
        }
    }
    Err(last)
}
