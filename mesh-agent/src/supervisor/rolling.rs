//! A pod's workers side by side: one serves; one may be born to replace it, and takes over what it
//! has once it is ready; those that were replaced finish their connections.
//!
//! The listeners are the same sockets for all of them, so nobody who connects meanwhile notices: who
//! accepts, serves. What is to become of which worker is in the pod's record before it is told.

use std::time::Duration;

use futures_util::future::join_all;
use mesh_api::worker::Counter;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::join::now_s;
use super::pods::{KnownWorker, Part};
use super::report::DrainingReport;
use super::session::{Event, Link, Session, SessionEnd, next, until};
use super::until::Until;
use super::workers::{Command, PodTask};
use crate::sandbox;

/// Most workers of a pod that drain. With more to be replaced one has to end first.
pub(super) const MOST_DRAINING: usize = 2;
/// How long a worker may drain that can't be told what policy says from now on.
const FOREIGN_DRAIN: Duration = Duration::from_secs(60);

/// Why a worker was not replaced.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RollFault {
    /// This is not the time for it, which says nothing of new workers.
    NotNow(String),
    /// The new worker did not get ready, or did not stay.
    Failed(String),
}

/// Who asked for a worker to be replaced: gets the new one's process id.
pub(super) type RollReply = oneshot::Sender<Result<i32, RollFault>>;

/// The worker that takes what comes.
pub(super) fn serving(links: &[Link]) -> Option<usize> {
    links.iter().position(|link| link.part == Part::Serving)
}

fn next_one(links: &[Link]) -> Option<usize> {
    links.iter().position(|link| link.part == Part::Next)
}

impl PodTask {
    /// Serves the pod's workers until the one that takes what comes has ended, or all are to go.
    /// With how long that one has lived.
    pub(super) async fn serve(&mut self, links: &mut Vec<Link>) -> (SessionEnd, Duration) {
        self.tell_workers(links);
        // What it has had to wait for since its first words was not its fault.
        links.iter_mut().for_each(Link::begin_step);
        let started = serving(links).map_or_else(Instant::now, |at| links[at].started);
        let end = self.serve_on(links).await;
        if let SessionEnd::Leave(drain) = end {
            // Capture first: what the app opens from now on goes its own way.
            let (cookie, slot) = (self.record.netns_id.cookie, self.record.slot);
            let walls = self.record.placed.as_ref().map(|p| p.walls.clone());
            let walls = walls.unwrap_or_default();
            if let Err(e) = self.shared.capture().withdraw(cookie, slot, &walls) {
                tracing::error!(pod = %self.record.key, error = %e, "the pod's capture could not be removed");
            }
            join_all(links.iter_mut().map(|link| link.finish(drain))).await;
        }
        if matches!(end, SessionEnd::Leave(_) | SessionEnd::Unserved) {
            self.end_all(links).await;
        }
        if !matches!(end, SessionEnd::Detached) {
            self.ended_at.get_or_insert_with(Instant::now);
            self.report.send_modify(|report| {
                report.worker_pid = None;
                report.worker_outdated = false;
                report.worker_foreign = false;
                report.ready = false;
                report.worker_version.clear();
                report.policy_version.clear();
                // The next worker finds out anew.
                report.unhealthy = false;
                report.health_detail.clear();
            });
        }
        (end, started.elapsed())
    }

    async fn serve_on(&mut self, links: &mut Vec<Link>) -> SessionEnd {
        loop {
            let shared = self.shared.clone();
            let older_at = self.grandfathers.wake();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Leave(drain)) => return SessionEnd::Leave(drain),
                    Some(Command::Metrics(reply)) => scrape(links, reply),
                    Some(Command::Roll(reply)) => self.begin_roll(links, reply),
                    None => return SessionEnd::Detached,
                },
                (at, event) = next(links, &shared.work) => {
                    if let Some(how) = self.happened(links, at, event).await {
                        return SessionEnd::Died(how);
                    }
                }
                _ = self.watch.due() => {
                    self.settle_budget();
                    if self.look() {
                        return SessionEnd::Unserved;
                    }
                }
                () = until(older_at) => self.tend_grandfathers(),
            }
        }
    }

    /// Takes in what has happened with one of the workers; how the one that serves has ended, if it
    /// has and no other is in its place.
    pub(super) async fn happened(
        &mut self,
        links: &mut Vec<Link>,
        at: usize,
        event: Event,
    ) -> Option<String> {
        let link = &mut links[at];
        let ended = Session { task: self, link }.happened(event).await;
        if let Some(how) = ended {
            return self.ended(links, at, how).await;
        }
        let link = &links[at];
        match link.part {
            Part::Next if link.ready => self.take_over(links, at),
            Part::Serving => self.tell_worker(&links[at]),
            Part::Draining(_) => self.tell_draining(links),
            Part::Next => {}
        }
        None
    }

    async fn ended(&mut self, links: &mut Vec<Link>, at: usize, how: String) -> Option<String> {
        let link = links.remove(at);
        let pid = self.buried(&link);
        let pod = self.record.key.clone();
        match link.part {
            Part::Serving => {
                // The one that was to replace it begins anew as well, with all that is left by this.
                if let Some(at) = next_one(links) {
                    let mut next = links.remove(at);
                    let _how = next.bury(Duration::ZERO).await;
                    self.buried(&next);
                    let why = format!("the worker that serves has ended: {how}");
                    self.answer_roll(Err(RollFault::NotNow(why)));
                }
            }
            Part::Next => {
                tracing::error!(%pod, pid, how, "the worker that was to take over has ended; the one before it serves on");
                self.answer_roll(Err(RollFault::Failed(how.clone())));
            }
            Part::Draining(_) => {
                tracing::info!(%pod, pid, how, "a worker that was replaced has ended");
            }
        }
        self.tell_workers(links);
        (link.part == Part::Serving).then_some(how)
    }

    /// What a dead worker has counted stays.
    fn buried(&mut self, link: &Link) -> i32 {
        let pid = link.worker.pid;
        if !link.last_counts.is_empty() {
            self.counters.update(pid, &link.last_counts);
        }
        self.counters.worker_ended(pid);
        pid
    }

    /// Kills every worker.
    pub(super) async fn end_all(&mut self, links: &mut Vec<Link>) {
        join_all(links.iter_mut().map(|link| link.bury(Duration::ZERO))).await;
        for link in std::mem::take(links) {
            self.buried(&link);
        }
        let why = "the pod has left, or is cut off".to_owned();
        self.answer_roll(Err(RollFault::NotNow(why)));
        self.tell_workers(links);
    }

    fn answer_roll(&mut self, answer: Result<i32, RollFault>) {
        if let Some(waiting) = self.rolling.take() {
            let _ = waiting.send(answer);
        }
    }

    /// Bears a worker beside the one that serves.
    fn begin_roll(&mut self, links: &mut Vec<Link>, reply: RollReply) {
        let draining = links.iter().filter(|link| link.is_draining()).count();
        let ready = serving(links).is_some_and(|at| links[at].ready);
        let in_the_way = if !ready {
            Some("its worker is not ready".to_owned())
        } else if next_one(links).is_some() {
            Some("its next worker is being born".to_owned())
        } else {
            let many = draining >= MOST_DRAINING;
            many.then(|| format!("{draining} workers of it drain; one has to end first"))
        };
        if let Some(why) = in_the_way {
            let _ = reply.send(Err(RollFault::NotNow(why)));
            return;
        }
        // Before it is born, so that it is born into what it needs.
        if self.workers_beside(draining + 1) {
            self.tell_limits(links);
        }
        match self.bear(Part::Next) {
            Ok(link) => {
                tracing::info!(pod = %self.record.key, pid = link.worker.pid, "a worker is born that is to take over");
                links.push(link);
                self.rolling = Some(reply);
            }
            Err(why) => drop(reply.send(Err(RollFault::Failed(why)))),
        }
        self.tell_workers(links);
    }

    /// The worker that was born beside the one that serves is ready: it is the pod's worker now.
    fn take_over(&mut self, links: &mut [Link], at: usize) {
        let old = serving(links);
        let drain = old.map(|old| self.time_to_drain(&links[old]));
        let until = Until::after(drain.unwrap_or_default());
        let next = &mut links[at];
        next.part = Part::Serving;
        let svid = next.legacy.svid.take();
        self.legacy.take_over(std::mem::take(&mut next.legacy));
        if let Some(svid) = svid {
            self.keep_certificate(svid);
        }
        // It is the next supervisor's to know before the old one lets go.
        if let Some(old) = old {
            links[old].part = Part::Draining(until);
        }
        self.tell_workers(links);
        let pid = links[at].worker.pid;
        if let (Some(old), Some(drain)) = (old, drain) {
            let from = links[old].worker.pid;
            let drain_s = drain.as_secs();
            tracing::info!(pod = %self.record.key, pid, from, drain_s, "a new worker has taken over; the old one finishes what it has");
            links[old].replace(drain, until);
        }
        let link = &mut links[at];
        Session { task: self, link }.is_in_charge();
        self.answer_roll(Ok(pid));
    }

    /// How long a worker that is replaced may take for what it has. It gets no certificate any more,
    /// and without one its tunnels end.
    fn time_to_drain(&self, old: &Link) -> Duration {
        let most = self.shared.config.drain_for;
        let most = if old.foreign {
            most.min(FOREIGN_DRAIN)
        } else {
            most
        };
        // One that was just adopted may not have told: it has the pod's certificate as it was kept.
        let kept = self.legacy.svid.as_ref().map(|svid| svid.not_after_s);
        let Some(not_after_s) = old.certificate_not_after_s.or(kept) else {
            return most;
        };
        most.min(Duration::from_secs(
            u64::try_from(not_after_s - now_s()).unwrap_or(0),
        ))
    }

    /// Keeps what each worker is, for the next supervisor, and has budget and report follow.
    pub(super) fn tell_workers(&mut self, links: &mut [Link]) {
        let known = |link: &Link| {
            Some(KnownWorker {
                pid: link.worker.pid,
                started: sandbox::started(link.worker.pid).ok()?,
                part: link.part,
            })
        };
        let workers: Vec<_> = match links.len() {
            // One that serves is known by being there.
            1 if links[0].part == Part::Serving => Vec::new(),
            _ => links.iter().filter_map(known).collect(),
        };
        if self.record.workers != workers {
            self.record.workers = workers;
            self.save();
        }
        let beside = links.iter().filter(|link| link.part != Part::Serving);
        if self.workers_beside(beside.count()) {
            self.tell_limits(links);
        }
        if let Some(at) = serving(links) {
            self.tell_worker(&links[at]);
        }
        self.tell_draining(links);
    }

    fn tell_limits(&mut self, links: &mut [Link]) {
        for link in links {
            Session { task: self, link }.limits_changed();
        }
    }

    fn tell_worker(&self, link: &Link) {
        let pid = u32::try_from(link.worker.pid).ok();
        let (outdated, foreign) = (link.outdated, link.foreign);
        self.report.send_if_modified(|report| {
            let before = (
                report.worker_pid,
                report.worker_outdated,
                report.worker_foreign,
            );
            report.worker_pid = pid;
            report.worker_outdated = outdated;
            report.worker_foreign = foreign;
            before != (pid, outdated, foreign)
        });
    }

    fn tell_draining(&self, links: &[Link]) {
        let draining = links.iter().filter_map(|link| {
            let Part::Draining(until) = link.part else {
                return None;
            };
            let pid = link.worker.pid;
            Some(DrainingReport {
                pid,
                connections: self.counters.open_connections(pid),
                until_s: until.wall_s(),
            })
        });
        let draining: Vec<_> = draining.collect();
        self.report.send_if_modified(|report| {
            let news = report.draining != draining;
            report.draining = draining;
            news
        });
    }
}

/// Asks every worker what it has counted. The answer is given when the one that serves has said it;
/// what others have counted is known from when they were asked last.
fn scrape(links: &mut [Link], reply: oneshot::Sender<Vec<Counter>>) {
    let mut reply = Some(reply);
    for link in links {
        let serves = link.part == Part::Serving;
        link.scrape(reply.take_if(|_| serves));
    }
}
