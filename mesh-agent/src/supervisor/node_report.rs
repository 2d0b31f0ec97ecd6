//! The node's state, told to control: which discovery is in effect, and how its pods are.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_api::node as wire;
use mesh_api::node::node_service_client::NodeServiceClient;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backoff::{Backoff, random};
use super::control::{Control, FIRST_RETRY};
use super::join::explain;
use super::report::PodReport;
use super::shared::Shared;
use crate::sandbox::cgroup::MeshCgroup;

/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(100);
/// How often control is told although nothing has changed.
const EVERY: Duration = Duration::from_secs(10);
/// How long one report may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Control may have lost what it knew when it comes back, so it is not kept waiting for long.
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// Reports to control, for ever.
pub(super) async fn keep_reporting(shared: Arc<Shared>) {
    let changes = shared.discovery.changes();
    let compose = || compose(&shared);
    let send = |report| {
        send(
            shared.control.clone(),
            as_of_now(report, &shared.mesh_cgroup),
        )
    };
    pace(&shared.news, changes, compose, send).await;
}

/// Sends what there is to report when it has changed, when it is time, and until it was taken.
async fn pace<S: Future<Output = Result<(), String>>>(
    news: &Notify,
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
                () = news.notified() => sleep(GATHER).await,
                Ok(()) = discovery.changed() => sleep(GATHER).await,
                () = sleep_until(due) => {}
            }
            continue;
        }
        match send(report.clone()).await {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("control: it takes the node's report again");
                }
                backoff.reset();
                told = Some((report, Instant::now()));
            }
            Err(why) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error = why,
                        "control: it does not take the node's report, so it may not know how pods are; trying on"
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

async fn send(control: Arc<Control>, report: wire::NodeReport) -> Result<(), String> {
    let mut client = NodeServiceClient::new(control.channel().await);
    match timeout(PATIENCE, client.report(report)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(explain(&status)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn compose(shared: &Shared) -> wire::NodeReport {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    fn report(version: u64) -> wire::NodeReport {
        wire::NodeReport {
            discovery_version: version.to_string(),
            ..wire::NodeReport::default()
        }
    }

    #[tokio::test]
    async fn changes_are_gathered_and_told_until_they_are_taken() {
        let (news, changes) = (Notify::new(), watch::Sender::new(0));
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
                news.notify_one();
                tokio::task::yield_now().await;
            }
            taken.notified().await;
            assert!(began.elapsed() < Duration::from_millis(200) + GATHER);
            // A signal without a change is none.
            news.notify_one();
            changes.send_replace(1);
            assert!(timeout(2 * GATHER, taken.notified()).await.is_err());
        };
        let paced = pace(&news, changes.subscribe(), || report(version.get()), send);
        tokio::select! {
            () = paced => unreachable!("it goes on for ever"),
            () = follow => {}
        }
        assert_eq!(*sent.borrow(), [report(1), report(11)]);
        assert_eq!(failures.get(), 0);
    }
}
