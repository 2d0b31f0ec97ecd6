//! A pod's task: what is done to the machine for the pod, in an order in which nothing
//! ever leaves in clear, and one worker after the other for as long as the pod is enrolled.
//!
//! The order is: cgroup → fresh maps → wall → worker (listeners, key, certificate) →
//! listeners in the kernel's map → steering of inbound → capture of outbound. It is undone
//! in the other direction, capture first.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::convert::address_to_bytes;
use mesh_api::worker::{Counter, FdKind, Pod};
use mesh_common::{POD_HAS_LISTENER_V6, PodConfig, WallConfig, mapped_v4};
use mesh_core::identity::Identity;
use metrics::counter;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::adopt;
use super::backoff::RestartPolicy;
use super::counters::Counters;
use super::csr::{Svid, chain_from_pem, chain_to_pem};
use super::legacy::Legacy;
use super::netns::{self, Netns};
use super::pods::{Goal, Placed, PodRecord};
use super::ports;
use super::report::{PodReport, PodState};
use super::session::{Session, SessionEnd};
use super::shared::Shared;
use crate::sandbox::cgroup::{Budget, PodCgroup};
use crate::sandbox::{self, Birth, Newborn};

/// What one worker may use.
const WORKER_BUDGET: Budget = Budget {
    cpu_weight: 100,
    memory_max_bytes: 1024 * 1024 * 1024,
    pids_max: 32,
};
/// When a pod that can't be enrolled is looked at again.
const PLACE_RETRY: Duration = Duration::from_secs(1);
/// How often and how long the removal of an emptied cgroup is tried: the kernel takes a
/// moment to let go of a dead process.
const CGROUP_RETRY: Duration = Duration::from_millis(5);
const CGROUP_PATIENCE: Duration = Duration::from_secs(2);

/// What the supervisor's other tasks ask of a pod's task.
#[derive(Debug)]
pub(super) enum Command {
    /// Take the pod out, letting its worker finish what is open for that long.
    Leave(Duration),
    /// The worker's counters.
    Metrics(oneshot::Sender<Vec<Counter>>),
}

/// One pod that is to be enrolled.
pub(super) struct PodTask {
    pub(super) shared: Arc<Shared>,
    pub(super) record: PodRecord,
    pub(super) identity: Identity,
    pub(super) report: Arc<watch::Sender<PodReport>>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) legacy: Legacy,
    pub(super) counters: Counters,
    netns: Netns,
    goal: Goal,
    cgroup: Option<PodCgroup>,
    policy: RestartPolicy,
}

/// What came of a step that a command can cut short.
enum Flow {
    Go,
    Leave,
    Detached,
}

impl PodTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        record: PodRecord,
        netns: Netns,
        goal: Goal,
        report: Arc<watch::Sender<PodReport>>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self, String> {
        let identity: Identity = goal.identity.parse().map_err(|e| format!("{e}"))?;
        Ok(Self {
            shared,
            record,
            identity,
            report,
            commands,
            legacy: Legacy::default(),
            counters: Counters::default(),
            netns,
            goal,
            cgroup: None,
            policy: RestartPolicy::default(),
        })
    }

    /// Enrols the pod and keeps it enrolled until it is told to leave, or its sender is gone.
    pub(super) async fn run(mut self) -> PodRecord {
        self.report.send_modify(|report| {
            report.state = PodState::Starting;
            report.reason = "its worker is being started".to_owned();
            report.identity.clone_from(&self.goal.identity);
            report.addresses.clone_from(&self.goal.addresses);
        });
        let mut adopted = self.adopt();
        if !self.is_captured() {
            match self.place(adopted.is_some()).await {
                Flow::Go => {}
                Flow::Leave => return self.leave().await,
                Flow::Detached => return self.record,
            }
        }
        loop {
            let started = Instant::now();
            let end = match adopted.take() {
                Some(worker) => self.serve(&worker, true).await,
                None => match self.spawn() {
                    Ok(worker) => self.serve(&worker, false).await,
                    Err(why) => SessionEnd::Died(why),
                },
            };
            match end {
                SessionEnd::Leave(_) => return self.leave().await,
                SessionEnd::Detached => return self.record,
                SessionEnd::Died(how) => match self.await_restart(started.elapsed(), &how).await {
                    Flow::Go => {}
                    Flow::Leave => return self.leave().await,
                    Flow::Detached => return self.record,
                },
            }
        }
    }

    /// The worker of an earlier supervisor, where one runs.
    fn adopt(&mut self) -> Option<Newborn> {
        let placed = self.record.placed.clone()?;
        let roots = &self.shared.config.trust_bundle;
        self.legacy.svid = chain_from_pem(&placed.certificate, &self.identity, roots);
        let cgroup = match self.shared.mesh_cgroup.existing(&self.record.key.joined()) {
            Ok(cgroup) => cgroup,
            Err(e) => {
                tracing::error!(pod = %self.record.key, error = %e, "the worker's cgroup is out of reach");
                return None;
            }
        };
        let worker = adopt::find(&cgroup, self.shared.worker_uid(self.record.slot));
        self.cgroup = Some(cgroup);
        match &worker {
            Some(worker) => {
                tracing::info!(pod = %self.record.key, pid = worker.pid, "worker adopted");
                counter!("nodemesh_workers_adopted_total").increment(1);
            }
            None => tracing::warn!(pod = %self.record.key, "no worker to adopt: a new one follows"),
        }
        worker
    }

    /// Whether the kernel captures this pod as its record says.
    fn is_captured(&self) -> bool {
        let Some(cgroup) = self.cgroup.as_ref().map(PodCgroup::id) else {
            return false;
        };
        let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
        let enrolled = self.shared.capture().enrolled();
        enrolled.is_ok_and(|all| {
            all.iter().any(|(netns, pod)| {
                *netns == cookie && pod.slot == slot && pod.worker_cgroup_id == cgroup
            })
        })
    }

    /// Prepares everything but the worker, trying until it works.
    async fn place(&mut self, has_worker: bool) -> Flow {
        loop {
            match self.try_place(has_worker) {
                Ok(()) => return Flow::Go,
                Err(why) => {
                    let changed = self.report.send_if_modified(|report| {
                        let changed = report.reason != why;
                        report.state = PodState::Refused;
                        report.reason.clone_from(&why);
                        changed
                    });
                    if changed {
                        tracing::error!(pod = %self.record.key, why, "the pod can't be enrolled; trying on");
                    }
                }
            }
            match self.pause(PLACE_RETRY).await {
                Flow::Go => {}
                other => return other,
            }
        }
    }

    fn try_place(&mut self, has_worker: bool) -> Result<(), String> {
        let facts = netns::inspect(&self.netns, &self.goal.addresses).map_err(|e| e.to_string())?;
        if !has_worker {
            let taken = ports::taken(&self.netns).map_err(|e| e.to_string())?;
            if !taken.is_empty() {
                return Err(format!(
                    "an app of the pod listens on {taken:?}, which the mesh needs (15001, 15006, 15008, 15053): give the app another port"
                ));
            }
        }
        let key = &self.record.key;
        let cgroup = self
            .shared
            .mesh_cgroup
            .pod(&key.namespace, &key.name, WORKER_BUDGET);
        let cgroup = cgroup.map_err(|e| e.to_string())?;
        for line in cgroup.unenforced() {
            tracing::warn!(pod = %key, "{line}");
        }
        let wall = WallConfig {
            worker_cgroup_id: cgroup.id(),
            slot: self.record.slot,
            flags: facts.flags,
        };
        let ports_added = self
            .record
            .placed
            .take()
            .map(|p| p.ports_added)
            .unwrap_or_default();
        self.record.placed = Some(Placed {
            goal: self.goal.clone(),
            flags: facts.flags,
            walls: facts.walls.clone(),
            ports_added,
            certificate: Vec::new(),
        });
        self.save();
        self.cgroup = Some(cgroup);
        let added = ports::reserve(&self.netns).map_err(|e| e.to_string())?;
        if let Some(placed) = self.record.placed.as_mut().filter(|_| !added.is_empty()) {
            placed.ports_added.extend(added);
            self.save();
        }
        let mut capture = self.shared.capture();
        capture
            .prepare_pod(self.record.slot)
            .map_err(|e| e.to_string())?;
        for ifindex in facts.walls {
            capture
                .attach_wall(ifindex, wall)
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn save(&self) {
        if let Err(e) = self.shared.records.save(&self.record) {
            tracing::error!(pod = %self.record.key, error = e, "the pod's record could not be kept");
        }
    }

    fn spawn(&self) -> Result<Newborn, String> {
        let cgroup = self.cgroup.as_ref().ok_or("no cgroup")?;
        let procs = cgroup.procs_files().map_err(|e| e.to_string())?;
        let uid = self.shared.worker_uid(self.record.slot);
        let birth = Birth {
            netns: self.netns.as_fd(),
            cgroup_procs: procs.iter().map(AsFd::as_fd).collect(),
            uid,
            gid: uid,
            name: &self.record.key.to_string(),
        };
        sandbox::spawn(&self.shared.image, &birth).map_err(|e| e.to_string())
    }

    /// Serves one worker to its end; or, if the pod is to leave, takes both out.
    async fn serve(&mut self, worker: &Newborn, adopted: bool) -> SessionEnd {
        self.report
            .send_modify(|report| report.worker_pid = u32::try_from(worker.pid).ok());
        let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
        let (shared, key) = (self.shared.clone(), self.record.key.clone());
        let walls = self
            .record
            .placed
            .as_ref()
            .map(|p| p.walls.clone())
            .unwrap_or_default();
        let greeted = Session::new(self, worker).and_then(|mut session| {
            if adopted {
                session.resync();
            } else {
                session.greet()?;
            }
            Ok(session)
        });
        let mut session = match greeted {
            Ok(session) => session,
            Err(e) => {
                let _ = worker.signal(nix::sys::signal::Signal::SIGKILL);
                return SessionEnd::Died(format!("its channel could not be set up: {e}"));
            }
        };
        let end = session.run().await;
        if let SessionEnd::Leave(drain) = end {
            // Capture first: what the app opens from now on goes its own way.
            if let Err(e) = shared.capture().withdraw(cookie, slot, &walls) {
                tracing::error!(pod = %key, error = %e, "the pod's capture could not be removed");
            }
            session.finish(drain).await;
        }
        drop(session);
        if !matches!(end, SessionEnd::Detached) {
            self.counters.worker_ended();
            self.report.send_modify(|report| {
                report.worker_pid = None;
                report.ready = false;
            });
        }
        end
    }

    async fn await_restart(&mut self, lived: Duration, how: &str) -> Flow {
        let wait = self.policy.after(lived);
        let (pod, wait_ms) = (self.record.key.to_string(), wait.as_millis());
        let lived_ms = lived.as_millis();
        tracing::warn!(
            pod,
            how,
            lived_ms,
            wait_ms,
            "worker ended; the next one follows"
        );
        counter!("nodemesh_worker_restarts_total", "pod" => pod).increment(1);
        self.report.send_modify(|report| {
            report.restarts += 1;
            report.state = PodState::Starting;
            report.reason = format!("its worker ended: {how}");
        });
        match wait.is_zero() {
            true => Flow::Go,
            false => self.pause(wait).await,
        }
    }

    /// Waits, and hears commands meanwhile.
    async fn pause(&mut self, wait: Duration) -> Flow {
        let end = Instant::now() + wait;
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Leave(_)) => return Flow::Leave,
                    Some(Command::Metrics(reply)) => {
                        let _ = reply.send(self.counters.totals());
                    }
                    None => return Flow::Detached,
                },
                () = tokio::time::sleep_until(end) => return Flow::Go,
            }
        }
    }

    /// What a worker is told of its pod.
    pub(super) fn introduction(&self) -> Pod {
        Pod {
            namespace: self.record.key.namespace.clone(),
            name: self.record.key.name.clone(),
            uid: self.goal.uid.clone(),
            service_account: self.identity.service_account().to_owned(),
            trust_domain: self.identity.trust_domain().to_string(),
            addresses: self.goal.addresses.iter().map(address_to_bytes).collect(),
            cluster_id: self.shared.config.cluster_id.clone(),
        }
    }

    /// Keeps a certificate for the next worker, and for the next supervisor.
    pub(super) fn keep_certificate(&mut self, svid: Svid) {
        if let Some(placed) = &mut self.record.placed {
            placed.certificate = chain_to_pem(&svid.chain);
        }
        self.legacy.svid = Some(svid);
        self.save();
    }

    /// Something is in the way for now.
    pub(super) fn stumbled(&self, why: &str) {
        self.report.send_modify(|report| {
            report.state = PodState::Starting;
            report.ready = false;
            why.clone_into(&mut report.reason);
        });
    }

    pub(super) fn now_enrolled(&self, pid: i32) {
        let news = self.report.send_if_modified(|report| {
            let news = report.state != PodState::Enrolled || !report.ready;
            report.state = PodState::Enrolled;
            report.ready = true;
            report.reason.clear();
            news
        });
        if news {
            tracing::info!(pod = %self.record.key, pid, identity = self.goal.identity, "enrolled");
        }
    }

    /// Steers the pod's traffic to its worker. Changes nothing where that is so already.
    pub(super) fn enrol(&self) -> Result<(), String> {
        let (Some(placed), Some(cgroup)) = (&self.record.placed, &self.cgroup) else {
            return Err("the pod is not prepared".to_owned());
        };
        let v4 = self.legacy.listener(FdKind::PlaintextV4);
        let v4 = v4.ok_or("the worker has no IPv4 listener for inbound")?;
        let v6 = self.legacy.listener(FdKind::PlaintextV6);
        let mut flags = placed.flags;
        if self.legacy.listener(FdKind::OutboundV6).is_some() {
            flags |= POD_HAS_LISTENER_V6;
        }
        let pod = PodConfig {
            worker_cgroup_id: cgroup.id(),
            slot: self.record.slot,
            flags,
            address_v4: first_v4(&self.goal),
            address_v6: first_v6(&self.goal),
        };
        let slot = self.record.slot;
        let mut capture = self.shared.capture();
        capture
            .set_listeners(slot, v4, v6)
            .map_err(|e| e.to_string())?;
        capture
            .steer(slot, self.netns.as_fd())
            .map_err(|e| e.to_string())?;
        capture
            .enrol(self.record.netns_id.cookie, pod)
            .map_err(|e| e.to_string())
    }

    /// Takes away everything that was done for the pod. Its worker is gone already.
    async fn leave(mut self) -> PodRecord {
        self.report.send_modify(|report| {
            report.state = PodState::Leaving;
            report.reason = "it is being taken out of the mesh".to_owned();
            report.ready = false;
        });
        if let Some(placed) = self.record.placed.take() {
            let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
            if let Err(e) = self.shared.capture().withdraw(cookie, slot, &placed.walls) {
                tracing::error!(pod = %self.record.key, error = %e, "the pod's capture could not be removed");
            }
            if let Err(e) = ports::release(&self.netns, &placed.ports_added) {
                tracing::warn!(pod = %self.record.key, error = %e, "the mesh's ports stay reserved in the pod");
            }
        }
        self.legacy = Legacy::default();
        if let Some(cgroup) = self.cgroup.take()
            && let Err(why) = remove_cgroup(cgroup).await
        {
            tracing::error!(pod = %self.record.key, why, "the worker's cgroup stays");
        }
        self.save();
        tracing::info!(pod = %self.record.key, "out of the mesh");
        self.record
    }
}

/// Kills what is left in a cgroup and removes it.
pub(super) async fn remove_cgroup(cgroup: PodCgroup) -> Result<(), String> {
    let deadline = Instant::now() + CGROUP_PATIENCE;
    cgroup.kill().map_err(|e| e.to_string())?;
    loop {
        match cgroup.clone().remove() {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() >= deadline => return Err(e.to_string()),
            Err(_) => sleep(CGROUP_RETRY).await,
        }
    }
}

fn first_v4(goal: &Goal) -> [u8; 16] {
    let found = goal.addresses.iter().find_map(|a| match a {
        std::net::IpAddr::V4(v4) => Some(mapped_v4(v4.octets())),
        std::net::IpAddr::V6(_) => None,
    });
    found.unwrap_or_default()
}

fn first_v6(goal: &Goal) -> [u8; 16] {
    let found = goal.addresses.iter().find_map(|a| match a {
        std::net::IpAddr::V6(v6) => Some(v6.octets()),
        std::net::IpAddr::V4(_) => None,
    });
    found.unwrap_or_default()
}
