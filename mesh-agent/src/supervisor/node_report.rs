//! The node's state, told to control: which discovery is in effect, and how its pods are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_api::convert::address_to_bytes;
use mesh_api::node as wire;
use mesh_api::node::node_service_client::NodeServiceClient;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::Channel;

use super::backoff::{Backoff, random};
use super::control::{FIRST_RETRY, Replica};
use super::join::explain;
use super::readiness;
use super::report::PodReport;
use super::shared::Shared;
use crate::sandbox::cgroup::MeshCgroup;

/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(100);
/// How often control is told although nothing has changed.
const EVERY: Duration = Duration::from_secs(10);
/// How long one report may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A replica may have lost what it knew when it comes back, so it is not kept waiting for long.
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// Reports to every replica of control, for ever: what a pod's health is, each has to tell the nodes
/// that follow it.
pub(super) async fn keep_reporting(shared: Arc<Shared>) {
    let mut replicas = shared.control.replicas();
    let mut tasks = JoinSet::new();
    let mut told: Vec<(Replica, AbortHandle)> = Vec::new();
    loop {
        let known = replicas.borrow_and_update().clone();
        told.retain(|(replica, task)| {
            let stays = known.contains(replica);
            if !stays {
                task.abort();
            }
            stays
        });
        for replica in known {
            if !told.iter().any(|(known, _)| *known == replica) {
                let task = tasks.spawn(report_to(shared.clone(), replica.clone()));
                told.push((replica, task));
            }
        }
        tokio::select! {
            // The sender is in `shared`.
            _ = replicas.changed() => {}
            // Of one that was left: they go on for ever.
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn report_to(shared: Arc<Shared>, replica: Replica) {
    let changes = shared.discovery.changes();
    let news = shared.news.subscribe();
    let compose = || compose(&shared);
    let send = |report| {
        let report = as_of_now(report, &shared.mesh_cgroup);
        send(replica.channel.clone(), report)
    };
    pace(replica.address, news, changes, compose, send).await;
}

/// Sends what there is to report when it has changed, when it is time, and until it was taken.
async fn pace<S: Future<Output = Result<(), String>>>(
    replica: SocketAddr,
    mut news: watch::Receiver<()>,
    mut discovery: watch::Receiver<u64>,
    compose: impl Fn() -> wire::NodeReport,
    send: impl Fn(wire::NodeReport) -> S,
) {
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut told: Option<(wire::NodeReport, Instant)> = None;
    let mut failing = false;
    loop {
        let report = compose();
        let known = told.as_ref().filter(|(old, _)| *old == report);
        if let Some(due) = known.map(|(_, at)| *at + EVERY)
            && due > Instant::now()
        {
            tokio::select! {
                Ok(()) = news.changed() => sleep(GATHER).await,
                Ok(()) = discovery.changed() => sleep(GATHER).await,
                () = sleep_until(due) => {}
            }
            continue;
        }
        match send(report.clone()).await {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(%replica, "control: it takes the node's report again");
                }
                backoff.reset();
                told = Some((report, Instant::now()));
            }
            Err(why) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        %replica,
                        error = why,
                        "control: a replica does not take the node's report, so it may not know how pods are; trying on"
                    );
                }
                told = None;
                sleep(backoff.next(random())).await;
            }
        }
    }
}

/// With what changes all the time, and is no reason to report.
fn as_of_now(mut report: wire::NodeReport, mesh: &MeshCgroup) -> wire::NodeReport {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    report.clock_ms = elapsed.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
    for pod in &mut report.pods {
        let usage = mesh.usage(&format!("{}_{}", pod.namespace, pod.name));
        let usage = usage.unwrap_or_default();
        pod.worker_cpu_us = usage.cpu_us;
        pod.worker_memory_bytes = usage.memory_bytes;
    }
    report
}

async fn send(channel: Channel, report: wire::NodeReport) -> Result<(), String> {
    let mut client = NodeServiceClient::new(channel);
    match timeout(PATIENCE, client.report(report)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(explain(&status)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn compose(shared: &Shared) -> wire::NodeReport {
    let lacks = readiness::lacks(shared);
    let pods = shared.pods();
    wire::NodeReport {
        clock_ms: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        discovery_version: shared.discovery.view().version.to_string(),
        pods: pods
            .values()
            .map(|pod| of_pod(&pod.report.borrow()))
            .collect(),
        unreadable_policies: shared.control.report().unreadable_policies,
        ready: lacks.is_none(),
        not_ready: lacks.unwrap_or_default(),
    }
}

fn of_pod(report: &PodReport) -> wire::PodReport {
    wire::PodReport {
        namespace: report.namespace.clone(),
        name: report.name.clone(),
        state: report.state.name().to_owned(),
        reason: report.reason.clone(),
        worker_pid: report
            .worker_pid
            .and_then(|pid| pid.try_into().ok())
            .unwrap_or(0),
        worker_version: report.worker_version.clone(),
        worker_restarts: report.restarts,
        certificate_not_after_s: report.certificate_not_after_s.unwrap_or(0),
        policy_version: report.policy_version.clone(),
        budget: report.budget.clone(),
        budget_unenforced: report.budget_unenforced.clone(),
        // What changes all the time is put in when it is sent.
        worker_cpu_us: 0,
        worker_memory_bytes: 0,
        unhealthy: report.unhealthy,
        health_detail: report.health_detail.clone(),
        addresses: seen(report),
    }
}

/// A pod's addresses, once they were seen in its network namespace.
fn seen(report: &PodReport) -> Vec<Vec<u8>> {
    let addresses = report.addresses.iter().filter(|_| report.located);
    addresses.map(address_to_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use tokio::sync::Notify;

    fn report(version: u64) -> wire::NodeReport {
        wire::NodeReport {
            discovery_version: version.to_string(),
            ..wire::NodeReport::default()
        }
    }

    #[tokio::test]
    async fn changes_are_gathered_and_told_until_they_are_taken() {
        let (news, changes) = (watch::Sender::new(()), watch::Sender::new(0));
        let version = Cell::new(1);
        let (sent, failures) = (RefCell::new(Vec::new()), Cell::new(1));
        let taken = Notify::new();
        let send = |report| {
            let fails = failures.get() > 0;
            if fails {
                failures.set(failures.get() - 1);
            } else {
                sent.borrow_mut().push(report);
                taken.notify_one();
            }
            std::future::ready(if fails {
                Err("away".to_owned())
            } else {
                Ok(())
            })
        };
        let follow = async {
            taken.notified().await;
            // Ten changes in a row are one report, soon.
            let began = Instant::now();
            for n in 2..=11 {
                version.set(n);
                news.send_replace(());
                tokio::task::yield_now().await;
            }
            taken.notified().await;
            assert!(began.elapsed() < Duration::from_millis(200) + GATHER);
            // A signal without a change is none.
            news.send_replace(());
            changes.send_replace(1);
            assert!(timeout(2 * GATHER, taken.notified()).await.is_err());
        };
        let replica = SocketAddr::from(([10, 0, 0, 1], 15012));
        let (told, known) = (news.subscribe(), changes.subscribe());
        let paced = pace(replica, told, known, || report(version.get()), send);
        tokio::select! {
            () = paced => unreachable!("it goes on for ever"),
            () = follow => {}
        }
        assert_eq!(*sent.borrow(), [report(1), report(11)]);
        assert_eq!(failures.get(), 0);
    }
}
