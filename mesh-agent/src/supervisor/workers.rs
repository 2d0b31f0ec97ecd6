//! A pod's task: what is done to the machine for the pod, in an order in which nothing
//! ever leaves in clear, and one worker after the other for as long as the pod is enrolled.
//!
//! The order is: cgroup → fresh maps with the pod's policy, walls, and a worker's birth, side by side →
//! worker's first words (listeners, key, certificate) → listeners in the kernel's map → steering of
//! inbound → capture of outbound. It is undone in the other direction, capture first. Of a pod that is
//! enrolled while it runs the wall comes last (`live`).

use std::collections::BTreeSet;
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
use super::foreign::Foreign;
use super::grandfather::Grandfathers;
use super::legacy::Legacy;
use super::look::Seen;
use super::netns::Netns;
use super::placement::PlaceFault;
use super::pods::{Goal, Part, PodRecord};
use super::report::PodState;
use super::reporter::Reporter;
use super::rolling::{RollFault, RollReply, serving};
use super::rules::Rules;
use super::session::{Link, Session, SessionEnd, next};
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
    /// The workers' counters.
    Metrics(oneshot::Sender<Vec<Counter>>),
    /// Replace the worker by another, which is born beside it and takes over when it is ready;
    /// answered with its process id, or why there is none.
    Roll(RollReply),
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
    pub(super) grandfathers: Grandfathers,
    /// Ports that the kernel lets kubelet's connections pass to; `None` where it was told none.
    pub(super) probe_ports: Option<BTreeSet<u16>>,
    pub(super) foreign: Foreign,
    pub(super) watch: Watch,
    pub(super) seen: Seen,
    /// The kernel has it cut off.
    pub(super) cut: bool,
    /// What was told last of why it can't be served.
    pub(super) told: Option<(Unserved, Outcome)>,
    /// Everything but the worker is prepared.
    placed: bool,
    /// A worker that was started while the kernel was being prepared, which mostly waits. Nothing
    /// was said to it yet.
    pub(super) early: Option<Newborn>,
    policy: RestartPolicy,
    /// Who waits for the worker that is being born beside the one that serves.
    pub(super) rolling: Option<RollReply>,
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
            early: None,
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
            grandfathers: Grandfathers::default(),
            probe_ports: None,
            foreign: Foreign::default(),
            policy: RestartPolicy::default(),
            rolling: None,
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
            report.located = false;
        });
        let mut links = self.adopt();
        self.cut = self
            .in_kernel()
            .is_some_and(|pod| pod.flags & POD_CUT_OFF != 0);
        if self.in_kernel().is_some() {
            self.restore_grandfathers();
        }
        self.placed = self.is_captured() && !self.look();
        loop {
            if !self.placed {
                let has_worker = serving(&links).is_some();
                match self.place(has_worker, &mut links).await {
                    Flow::Go | Flow::Place => {}
                    Flow::Leave => return self.leave().await,
                    Flow::Detached => {
                        self.end_early().await;
                        return self.record;
                    }
                }
            }
            let oom_kills = self.oom_kills();
            let end = match serving(&links) {
                Some(_) => self.serve(&mut links).await,
                None => match self.bear(Part::Serving) {
                    Ok(link) => {
                        links.push(link);
                        self.serve(&mut links).await
                    }
                    Err(why) => (SessionEnd::Died(why), Duration::ZERO),
                },
            };
            match end {
                (SessionEnd::Leave(_), _) => return self.leave().await,
                (SessionEnd::Detached, _) => return self.record,
                (SessionEnd::Unserved, _) => self.placed = false,
                (SessionEnd::Died(how), lived) => {
                    let how = self.with_oom_kill(how, oom_kills);
                    match self.await_restart(lived, &how, &mut links).await {
                        Flow::Go => {}
                        Flow::Place => self.placed = false,
                        Flow::Leave => return self.leave().await,
                        Flow::Detached => return self.record,
                    }
                }
            }
        }
    }

    /// The workers of an earlier supervisor, where some run.
    fn adopt(&mut self) -> Vec<Link> {
        let Some(placed) = self.record.placed.clone() else {
            return Vec::new();
        };
        let trusted = self.shared.trust.bundle();
        self.legacy.svid = chain_from_pem(&placed.certificate, &self.identity, &trusted.roots);
        let cgroup = match self.shared.mesh_cgroup.existing(&self.record.key.joined()) {
            Ok(cgroup) => cgroup,
            Err(e) => {
                tracing::error!(pod = %self.record.key, error = %e, "the worker's cgroup is out of reach");
                return Vec::new();
            }
        };
        let uid = self.shared.worker_uid(self.record.slot);
        let found = adopt::find(&cgroup, uid, &self.record.workers);
        self.cgroup = Some(cgroup);
        let mut links = Vec::new();
        for (worker, part) in found {
            let pid = worker.pid;
            match Link::new(self, worker, part, true) {
                Ok(mut link) => {
                    tracing::info!(pod = %self.record.key, pid, ?part, outdated = link.outdated, "worker adopted");
                    counter!("nodemesh_workers_adopted_total").increment(1);
                    Session {
                        task: self,
                        link: &mut link,
                    }
                    .resync();
                    links.push(link);
                }
                Err((worker, e)) => self.out_of_reach(&worker, &e),
            }
        }
        if serving(&links).is_none() {
            tracing::warn!(pod = %self.record.key, "no worker to adopt: a new one follows");
        }
        self.tell_workers(&mut links);
        links
    }

    fn out_of_reach(&self, worker: &Newborn, error: &std::io::Error) {
        tracing::error!(pod = %self.record.key, pid = worker.pid, error = %error, "the worker's channel could not be set up: killing it");
        let _ = worker.signal(nix::sys::signal::Signal::SIGKILL);
    }

    /// Prepares everything but the worker, trying until it works.
    async fn place(&mut self, has_worker: bool, links: &mut Vec<Link>) -> Flow {
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
            match self.pause(PLACE_RETRY, links).await {
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

    pub(super) fn spawn(&self) -> Result<Newborn, String> {
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

    /// A new worker, with its first words on their way.
    pub(super) fn bear(&mut self, part: Part) -> Result<Link, String> {
        let worker = match self.early.take() {
            Some(worker) => worker,
            None => self.spawn()?,
        };
        let channel = |e: std::io::Error| format!("its channel could not be set up: {e}");
        let mut link = Link::new(self, worker, part, false).map_err(|(worker, e)| {
            self.out_of_reach(&worker, &e);
            channel(e)
        })?;
        let greeted = Session {
            task: self,
            link: &mut link,
        }
        .greet();
        match greeted {
            Ok(()) => Ok(link),
            Err(e) => {
                self.out_of_reach(&link.worker, &e);
                Err(channel(e))
            }
        }
    }

    /// Ends a worker that was started and is not needed any more.
    pub(super) async fn end_early(&mut self) {
        let Some(worker) = self.early.take() else {
            return;
        };
        match Link::new(self, worker, Part::Serving, false) {
            Ok(mut link) => {
                link.bury(Duration::ZERO).await;
            }
            Err((worker, e)) => self.out_of_reach(&worker, &e),
        }
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
        let limit_mib = self.allotment.memory_max_mib();
        format!("{how}: out of memory, its cgroup allows {limit_mib} MiB (memory.max)")
    }

    async fn await_restart(&mut self, lived: Duration, how: &str, links: &mut Vec<Link>) -> Flow {
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
            false => self.pause(wait, links).await,
        }
    }

    /// Waits, and hears commands meanwhile, and workers that drain. The kernel's policy doesn't wait
    /// for a worker, nor does what is watched for.
    async fn pause(&mut self, wait: Duration, links: &mut Vec<Link>) -> Flow {
        let end = Instant::now() + wait;
        let mut changes = self.shared.discovery.changes();
        changes.mark_changed();
        loop {
            let shared = self.shared.clone();
            tokio::select! {
                Ok(()) = changes.changed(), if self.rules.are_in_use() => {
                    let discovery = self.shared.discovery.clone();
                    if let Some(view) = discovery.known() {
                        self.follow_discovery(&view);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Leave(_)) => {
                        self.end_all(links).await;
                        return Flow::Leave;
                    }
                    Some(Command::Metrics(reply)) => {
                        let _ = reply.send(self.counters.totals());
                    }
                    Some(Command::Roll(reply)) => {
                        let why = "the pod has no worker that serves".to_owned();
                        let _ = reply.send(Err(RollFault::NotNow(why)));
                    }
                    None => return Flow::Detached,
                },
                _ = self.watch.due() => {
                    if !self.placed {
                        return Flow::Go;
                    }
                    if self.look() {
                        self.end_all(links).await;
                        return Flow::Place;
                    }
                }
                // Before the pod is placed there is nothing to be steered to whoever is ready.
                (at, event) = next(links, &shared.work), if self.placed => {
                    self.happened(links, at, event).await;
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
