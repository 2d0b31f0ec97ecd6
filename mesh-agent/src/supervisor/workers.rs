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
use mesh_api::worker::{Counter, Pod};
use mesh_common::POD_CUT_OFF;
use mesh_core::identity::Identity;
use metrics::counter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::adopt;
use super::allotment::Allotment;
use super::backoff::RestartPolicy;
use super::counters::Counters;
use super::csr::{Svid, chain_from_pem, chain_to_pem};
use super::legacy::Legacy;
use super::look::Seen;
use super::netns::Netns;
use super::placement::PlaceFault;
use super::pods::{Goal, PodRecord};
use super::report::PodState;
use super::reporter::Reporter;
use super::rules::Rules;
use super::session::{Session, SessionEnd};
use super::shared::Shared;
use super::tamper::Outcome;
use super::unserved::Unserved;
use super::watch::Watch;
use crate::sandbox::cgroup::PodCgroup;
use crate::sandbox::{self, Birth, Newborn};

/// When a pod that can't be enrolled is looked at again.
const PLACE_RETRY: Duration = Duration::from_secs(1);
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
    pub(super) report: Arc<Reporter>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) legacy: Legacy,
    pub(super) counters: Counters,
    pub(super) netns: Netns,
    pub(super) goal: Goal,
    pub(super) cgroup: Option<PodCgroup>,
    pub(super) rules: Rules,
    pub(super) allotment: Allotment,
    pub(super) watch: Watch,
    pub(super) seen: Seen,
    /// The kernel has it cut off.
    pub(super) cut: bool,
    /// What was told last of why it can't be served.
    pub(super) told: Option<(Unserved, Outcome)>,
    /// Everything but the worker is prepared.
    placed: bool,
    policy: RestartPolicy,
    /// When the last worker's end was noticed, until the next one is ready.
    pub(super) ended_at: Option<Instant>,
}

/// What came of a step that a command can cut short.
enum Flow {
    Go,
    /// It can't be served as it is any more.
    Place,
    Leave,
    Detached,
}

impl PodTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        record: PodRecord,
        netns: Netns,
        goal: Goal,
        report: Arc<Reporter>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self, String> {
        let identity: Identity = goal.identity.parse().map_err(|e| format!("{e}"))?;
        let (watch, watching) = Watch::start(&netns, Instant::now());
        if let Err(e) = watching {
            tracing::error!(pod = %record.key, error = %e, "changes of the pod's devices are found by the clock only");
        }
        Ok(Self {
            watch,
            seen: Seen::default(),
            cut: false,
            told: None,
            placed: false,
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
            rules: Rules::default(),
            allotment: Allotment::default(),
            policy: RestartPolicy::default(),
            ended_at: None,
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
        self.cut = self
            .in_kernel()
            .is_some_and(|pod| pod.flags & POD_CUT_OFF != 0);
        self.placed = self.is_captured() && !self.look();
        loop {
            if !self.placed {
                match self.place(adopted.is_some()).await {
                    Flow::Go | Flow::Place => {}
                    Flow::Leave => return self.leave().await,
                    Flow::Detached => return self.record,
                }
            }
            let started = Instant::now();
            let oom_kills = self.oom_kills();
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
                SessionEnd::Unserved => self.placed = false,
                SessionEnd::Died(how) => {
                    let how = self.with_oom_kill(how, oom_kills);
                    match self.await_restart(started.elapsed(), &how).await {
                        Flow::Go => {}
                        Flow::Place => self.placed = false,
                        Flow::Leave => return self.leave().await,
                        Flow::Detached => return self.record,
                    }
                }
            }
        }
    }

    /// The worker of an earlier supervisor, where one runs.
    fn adopt(&mut self) -> Option<Newborn> {
        let placed = self.record.placed.clone()?;
        let trusted = self.shared.trust.bundle();
        self.legacy.svid = chain_from_pem(&placed.certificate, &self.identity, &trusted.roots);
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

    /// Prepares everything but the worker, trying until it works.
    async fn place(&mut self, has_worker: bool) -> Flow {
        loop {
            let began = Instant::now();
            let placed = self.try_place(has_worker);
            self.watch.looked(began);
            match placed {
                // What is there now is what later looks compare with.
                Ok(()) => {
                    self.placed = !self.look();
                    if self.placed {
                        return Flow::Go;
                    }
                }
                Err(PlaceFault::Unserved(why, devices)) => {
                    let text = why.to_string();
                    if !self.unserved(why, Some(&devices)) {
                        self.refused(&text);
                    }
                }
                Err(PlaceFault::Later(why)) => self.refused(&why),
            }
            match self.pause(PLACE_RETRY).await {
                Flow::Go | Flow::Place => {}
                other => return other,
            }
        }
    }

    pub(super) fn save(&self) {
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
            self.ended_at.get_or_insert_with(Instant::now);
            self.counters.worker_ended();
            self.report.send_modify(|report| {
                report.worker_pid = None;
                report.ready = false;
                report.worker_version.clear();
                report.policy_version.clear();
                // The next worker finds out anew.
                report.unhealthy = false;
                report.health_detail.clear();
            });
        }
        end
    }

    fn oom_kills(&self) -> u64 {
        self.cgroup.as_ref().map_or(0, PodCgroup::oom_kills)
    }

    /// How a worker ended, if that was at its memory limit, of which its exit says nothing.
    fn with_oom_kill(&self, how: String, before: u64) -> String {
        let kills = self.oom_kills().saturating_sub(before);
        if kills == 0 {
            return how;
        }
        self.report.send_modify(|report| report.oom_kills += kills);
        let limit_mib = self.allotment.budget.memory_max_mib;
        format!("{how}: out of memory, its cgroup allows {limit_mib} MiB (memory.max)")
    }

    async fn await_restart(&mut self, lived: Duration, how: &str) -> Flow {
        let now = Instant::now();
        let own = self.policy.after(lived);
        let wait = own.max(self.shared.work.restart(now) - now);
        if !wait.is_zero() {
            self.held_back("restarts");
        }
        if !self.is_captured() {
            self.unserved(Unserved::Worker(how.to_owned()), None);
        }
        let (pod, wait_ms) = (&self.record.key, wait.as_millis());
        let lived_ms = lived.as_millis();
        tracing::warn!(
            %pod,
            how,
            lived_ms,
            wait_ms,
            "worker ended; the next one follows"
        );
        self.report.send_modify(|report| {
            report.restarts += 1;
            if report.state != PodState::CutOff {
                report.state = PodState::Starting;
            }
            report.reason = format!("its worker ended: {how}");
        });
        match wait.is_zero() {
            true => Flow::Go,
            false => self.pause(wait).await,
        }
    }

    /// Waits, and hears commands meanwhile. The kernel's policy doesn't wait for a worker, nor does
    /// what is watched for.
    async fn pause(&mut self, wait: Duration) -> Flow {
        let end = Instant::now() + wait;
        let mut changes = self.shared.discovery.changes();
        changes.mark_changed();
        loop {
            tokio::select! {
                Ok(()) = changes.changed(), if self.rules.are_in_use() => {
                    let discovery = self.shared.discovery.clone();
                    if let Some(view) = discovery.known() {
                        self.follow_discovery(&view);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Leave(_)) => return Flow::Leave,
                    Some(Command::Metrics(reply)) => {
                        let _ = reply.send(self.counters.totals());
                    }
                    None => return Flow::Detached,
                },
                _ = self.watch.due() => {
                    if !self.placed {
                        return Flow::Go;
                    }
                    if self.look() {
                        return Flow::Place;
                    }
                }
                () = tokio::time::sleep_until(end) => return Flow::Go,
            }
        }
    }

    /// Something of the pod's worker had to wait for its, or the node's, budget of work.
    pub(super) fn held_back(&mut self, what: &str) {
        self.counters
            .count("nodemesh_supervisor_held_back_total", what);
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
}
