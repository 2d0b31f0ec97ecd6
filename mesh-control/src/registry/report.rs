//! What is kept of nodes' reports: the last one, bounded whatever the node sends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesh_api::convert::address_from_bytes;
use mesh_api::{admin, node};
use mesh_core::model::{Mesh, WorkloadUid};

use super::workload_uid;

/// Reports of one node in one second, beyond which they are refused.
const MAX_REPORTS: u32 = 10;
const RATE_WINDOW: Duration = Duration::from_secs(1);
/// A node reports every 10 s at least; one that has not for so long is called silent.
const SILENT_AFTER: Duration = Duration::from_secs(30);
/// Longest texts that are kept, in characters: names and versions, and sentences.
const MAX_WORD: usize = 64;
const MAX_SENTENCE: usize = 256;
/// Most lines of one kind that are kept of a pod.
const MAX_LINES: usize = 4;
/// Most policies that a node is known not to be able to read, and the longest name of one: kind,
/// namespace and name.
const MAX_UNREADABLE: usize = 1024;
const MAX_POLICY_NAME: usize = 384;
/// Most addresses of one pod: one of each family, and some to spare.
const MAX_ADDRESSES: usize = 4;

/// A report that is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than 10 reports in a second: gather changes, and report them together")]
pub struct TooManyReports {
    /// Whether it is the first in its second.
    pub first: bool,
}

/// The last word of a node.
#[derive(Debug)]
pub(super) struct NodeRecord {
    version: String,
    discovery_version: String,
    last: Instant,
    /// What is in the way of enrolling pods there; `None`: nothing.
    lacks: Option<String>,
    window: Instant,
    reports: u32,
    /// Names of policies that it can't read.
    pub(super) unreadable: BTreeSet<String>,
    /// Its own pods, that control knows to be bound to it.
    pub(super) pods: BTreeMap<WorkloadUid, admin::PodReport>,
    /// Those of them whose addresses it has seen.
    pub(super) addresses: BTreeMap<WorkloadUid, Vec<IpAddr>>,
}

impl NodeRecord {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            version: String::new(),
            discovery_version: String::new(),
            last: now,
            lacks: Some(String::new()),
            window: now,
            reports: 0,
            unreadable: BTreeSet::new(),
            pods: BTreeMap::new(),
            addresses: BTreeMap::new(),
        }
    }

    /// Takes a report in place of the last one.
    pub(super) fn take(
        &mut self,
        name: &str,
        report: &node::NodeReport,
        mesh: &Mesh,
        now: Instant,
    ) -> Result<(), TooManyReports> {
        self.admit(now)?;
        self.last = now;
        self.version = cut(&report.version, MAX_WORD);
        self.discovery_version = cut(&report.discovery_version, MAX_WORD);
        self.lacks = (!report.ready).then(|| match report.not_ready.as_str() {
            "" => "it does not say that it is ready: is it of an older version?".to_owned(),
            why => cut(why, MAX_SENTENCE),
        });
        let unreadable = report.unreadable_policies.iter().take(MAX_UNREADABLE);
        self.unreadable = unreadable.map(|name| cut(name, MAX_POLICY_NAME)).collect();
        self.pods.clear();
        self.addresses.clear();
        for pod in &report.pods {
            let workload = mesh.workload(&workload_uid(&pod.namespace, &pod.name));
            let Some(workload) = workload.filter(|workload| workload.node == name) else {
                continue;
            };
            let addresses = addresses(&pod.addresses);
            if !addresses.is_empty() {
                self.addresses.insert(workload.uid.clone(), addresses);
            }
            self.pods.insert(workload.uid.clone(), pod_report(pod));
        }
        Ok(())
    }

    fn admit(&mut self, now: Instant) -> Result<(), TooManyReports> {
        if now.duration_since(self.window) >= RATE_WINDOW {
            self.window = now;
            self.reports = 0;
        }
        self.reports = self.reports.saturating_add(1);
        let first = self.reports == MAX_REPORTS + 1;
        match self.reports > MAX_REPORTS {
            true => Err(TooManyReports { first }),
            false => Ok(()),
        }
    }

    /// Whether it has reported since then.
    pub(super) fn heard_since(&self, since: Instant) -> bool {
        self.last >= since
    }

    /// What is in the way of enrolling pods there, by its own word.
    pub(super) fn lacks(&self) -> Option<&str> {
        self.lacks.as_deref()
    }

    /// How long ago it reported.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.last)
    }

    /// Whether it has missed its reports.
    pub(super) fn silent(&self, now: Instant) -> bool {
        self.age(now) >= SILENT_AFTER
    }

    pub(super) fn status(&self, served: &str, now: Instant) -> admin::NodeReport {
        admin::NodeReport {
            version: self.version.clone(),
            age_s: self.age(now).as_secs(),
            silent: self.silent(now),
            discovery_version: self.discovery_version.clone(),
            behind: self.discovery_version != served,
            not_ready: self.lacks.clone(),
            clock_ahead_s: None,
        }
    }
}

fn pod_report(pod: &node::PodReport) -> admin::PodReport {
    admin::PodReport {
        state: cut(&pod.state, MAX_WORD),
        reason: cut(&pod.reason, MAX_SENTENCE),
        worker_pid: (pod.worker_pid > 0).then_some(pod.worker_pid),
        worker_version: cut(&pod.worker_version, MAX_WORD),
        worker_restarts: pod.worker_restarts,
        certificate_not_after_s: (pod.certificate_not_after_s > 0)
            .then_some(pod.certificate_not_after_s),
        policy_version: cut(&pod.policy_version, MAX_WORD),
        worker_cpu_us: pod.worker_cpu_us,
        worker_memory_bytes: pod.worker_memory_bytes,
        budget: cut_all(&pod.budget),
        budget_unenforced: cut_all(&pod.budget_unenforced),
        unhealthy: pod.unhealthy,
        health_detail: cut(&pod.health_detail, MAX_SENTENCE),
    }
}

/// Addresses that a pod can have. What is none is left out.
fn addresses(bytes: &[Vec<u8>]) -> Vec<IpAddr> {
    let read = bytes.iter().take(MAX_ADDRESSES);
    let read = read.filter_map(|bytes| address_from_bytes(bytes, "addresses").ok());
    let can_be_a_pods = |address: &IpAddr| {
        let local = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        !local && !address.is_loopback()
    };
    read.filter(can_be_a_pods).collect()
}

/// So many lines of a pod as there can be: one for each controller.
fn cut_all(lines: &[String]) -> Vec<String> {
    let lines = lines.iter().take(MAX_LINES);
    lines.map(|line| cut(line, MAX_SENTENCE)).collect()
}

/// A text that can be shown on a terminal, and is no longer than that.
fn cut(text: &str, max: usize) -> String {
    let harmless = text.chars().filter(|c| !c.is_control());
    harmless.take(max).collect()
}
