//! Which pods' workers are replaced, and when: those that run another program than the ones that
//! are started now, a few at a time, the next when the last new one is ready and has stayed. When new
//! workers fail one after the other it stops: what runs is better than what doesn't.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::pods::PodKey;
use super::report::{PodReport, PodState, RollReport};
use super::rolling::{MOST_DRAINING, RollFault};
use super::shared::{PodHandle, Shared};
use super::workers::Command;

/// New workers that fail in a row before it stops.
const MOST_FAILURES: u32 = 3;
/// How long a new worker may take until it is ready: more than any single step of its may.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it has to stay before the next pod's turn.
const STAYS_FOR: Duration = Duration::from_secs(1);
/// When a pod whose new worker has failed has its next turn.
const RETRY: Duration = Duration::from_secs(2);
/// How long news are gathered: every pod's report is news.
const GATHER: Duration = Duration::from_millis(50);

/// How far the replacement has come.
#[derive(Debug, Default)]
pub(super) struct Roll {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Replaced whatever they run.
    wanted: BTreeSet<PodKey>,
    /// Asked for by hand: also where nothing is replaced by itself.
    by_hand: bool,
    under_way: BTreeSet<PodKey>,
    /// Pods whose last attempt failed, and when the next may be.
    not_before: BTreeMap<PodKey, Instant>,
    failures_in_a_row: u32,
    done: u64,
    failed: u64,
    stopped: String,
}

impl Roll {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The operator wants it to begin, or to go on.
    pub(super) fn by_hand(&self, shared: &Shared, all: bool) {
        let pods = shared.pods().clone().into_iter();
        let in_mesh = pods.filter(|(_, pod)| pod.commands.is_some());
        let pods: Vec<PodKey> = in_mesh.map(|(key, _)| key).collect();
        let mut state = self.state();
        state.by_hand = true;
        state.stopped.clear();
        state.failures_in_a_row = 0;
        state.not_before.clear();
        if all {
            state.wanted.extend(pods);
        }
        drop(state);
        metrics::gauge!("nodemesh_roll_stopped").set(0);
        tracing::info!(all, "workers are to be replaced, by order");
        self.wake.notify_one();
    }

    /// For `status`.
    pub(super) fn report(&self, shared: &Shared) -> RollReport {
        let pods = shared.pods();
        let state = self.state();
        let left = pods
            .iter()
            .filter(|(key, pod)| state.wanted.contains(key) || pod.report.borrow().worker_outdated);
        RollReport {
            left: left.count(),
            under_way: state.under_way.iter().map(ToString::to_string).collect(),
            done: state.done,
            failed: state.failed,
            stopped: state.stopped.clone(),
        }
    }
}

impl State {
    /// Whether this pod's worker is to be replaced now.
    fn is_due(&self, key: &PodKey, pod: &PodReport, by_itself: bool, now: Instant) -> bool {
        let meant = self.wanted.contains(key)
            || pod.worker_foreign
            || (pod.worker_outdated && (by_itself || self.by_hand));
        meant
            && pod.state == PodState::Enrolled
            && pod.ready
            && pod.draining.len() < MOST_DRAINING
            && !self.under_way.contains(key)
            && self.not_before.get(key).is_none_or(|at| *at <= now)
    }

    /// A new worker has taken over and stayed, or has not.
    fn ended(&mut self, key: &PodKey, outcome: Result<i32, RollFault>, now: Instant) {
        self.under_way.remove(key);
        match outcome {
            Ok(pid) => {
                self.wanted.remove(key);
                self.not_before.remove(key);
                self.failures_in_a_row = 0;
                self.done += 1;
                metrics::counter!("nodemesh_workers_rolled_total").increment(1);
                tracing::info!(pod = %key, pid, "worker replaced");
            }
            Err(RollFault::NotNow(why)) => {
                self.not_before.insert(key.clone(), now + RETRY);
                tracing::info!(pod = %key, why, "the worker is not replaced now");
            }
            Err(RollFault::Failed(why)) => {
                self.not_before.insert(key.clone(), now + RETRY);
                self.failures_in_a_row += 1;
                self.failed += 1;
                metrics::counter!("nodemesh_worker_roll_failures_total").increment(1);
                tracing::error!(pod = %key, why, "the worker could not be replaced; the one before it serves on");
                self.stop_after_failures(key, &why);
            }
        }
    }

    fn stop_after_failures(&mut self, key: &PodKey, why: &str) {
        if self.failures_in_a_row < MOST_FAILURES || !self.stopped.is_empty() {
            return;
        }
        self.stopped = format!(
            "{MOST_FAILURES} new workers in a row failed, the last one that of {key}: {why}"
        );
        metrics::gauge!("nodemesh_roll_stopped").set(1);
        let stopped = &self.stopped;
        tracing::error!(
            stopped,
            "no more workers are replaced; those that run serve on. See why the new ones fail, then `mesh-agent roll`, or start another agent"
        );
    }
}

/// Replaces workers, for ever.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut news = shared.news.subscribe();
    let mut tasks = JoinSet::new();
    metrics::gauge!("nodemesh_roll_stopped").set(0);
    loop {
        while let Some((key, pod)) = choose(&shared) {
            tasks.spawn(replace(key, pod));
        }
        let retry = shared.roll.state().not_before.values().min().copied();
        let later = Instant::now() + Duration::from_secs(3600);
        tokio::select! {
            Some(ended) = tasks.join_next() => match ended {
                Ok((key, outcome)) => shared.roll.state().ended(&key, outcome, Instant::now()),
                Err(e) => tracing::error!(error = %e, "a replacement of a worker failed inside"),
            },
            () = shared.roll.wake.notified() => {}
            // The sender is in `shared`.
            _ = news.changed() => sleep(GATHER).await,
            () = sleep_until(retry.unwrap_or(later)) => forget_old(&shared),
        }
    }
}

fn forget_old(shared: &Shared) {
    let now = Instant::now();
    shared.roll.state().not_before.retain(|_, at| *at > now);
}

/// The next pod, whose turn it has from here on.
fn choose(shared: &Shared) -> Option<(PodKey, PodHandle)> {
    let pods = shared.pods();
    let mut state = shared.roll.state();
    let in_mesh = |key: &PodKey| pods.get(key).is_some_and(|pod| pod.commands.is_some());
    state.wanted.retain(in_mesh);
    let config = &shared.config;
    if !state.stopped.is_empty() || state.under_way.len() >= config.roll_at_once {
        return None;
    }
    let now = Instant::now();
    let due = |(key, pod): &(&PodKey, &PodHandle)| {
        pod.commands.is_some()
            && state.is_due(key, &pod.report.borrow(), config.roll_by_itself, now)
    };
    let (key, pod) = pods.iter().find(due)?;
    let chosen = (key.clone(), pod.clone());
    state.under_way.insert(chosen.0.clone());
    Some(chosen)
}

async fn replace(key: PodKey, pod: PodHandle) -> (PodKey, Result<i32, RollFault>) {
    let outcome = replace_one(pod).await;
    (key, outcome)
}

async fn replace_one(mut pod: PodHandle) -> Result<i32, RollFault> {
    let leaving = || RollFault::NotNow("the pod is leaving, or the supervisor".to_owned());
    let commands = pod.commands.take().ok_or_else(leaving)?;
    let (reply, answer) = oneshot::channel();
    let ended_before = pod.report.borrow().restarts;
    let sent = commands.send(Command::Roll(reply)).await;
    sent.map_err(|_| leaving())?;
    let pid = match timeout(READY_WITHIN, answer).await {
        Ok(answer) => answer.map_err(|_| leaving())??,
        Err(_) => {
            let why = format!("it was not ready within {READY_WITHIN:?}");
            return Err(RollFault::Failed(why));
        }
    };
    let ended = |report: &PodReport| report.restarts != ended_before;
    match timeout(STAYS_FOR, pod.report.wait_for(ended)).await {
        // It is still there, or the pod is not.
        Err(_) | Ok(Err(_)) => Ok(pid),
        Ok(Ok(_)) => {
            let why = "it took over and ended within a second".to_owned();
            Err(RollFault::Failed(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> PodKey {
        PodKey::new("shop", name).unwrap()
    }

    fn pod() -> PodReport {
        PodReport {
            state: PodState::Enrolled,
            ready: true,
            worker_outdated: true,
            ..PodReport::new("shop", "cart")
        }
    }

    #[test]
    fn a_worker_is_replaced_that_runs_another_program_and_serves() {
        let (state, now, cart) = (State::default(), Instant::now(), key("cart"));
        let due = |pod: &PodReport, by_itself| state.is_due(&cart, pod, by_itself, now);
        assert!(due(&pod(), true));
        assert!(!due(&pod(), false), "by hand only");
        let mut other = pod();
        other.worker_outdated = false;
        assert!(!due(&other, true));
        other.worker_foreign = true;
        assert!(due(&other, false));
        for change in [
            |pod: &mut PodReport| pod.ready = false,
            |pod: &mut PodReport| pod.state = PodState::CutOff,
        ] {
            let mut other = pod();
            change(&mut other);
            assert!(!due(&other, true));
        }
    }

    #[test]
    fn failures_in_a_row_stop_it_and_a_success_does_not_count() {
        let (mut state, now) = (State::default(), Instant::now());
        let (cart, pay) = (key("cart"), key("pay"));
        let fail = || Err(RollFault::Failed("it broke".to_owned()));
        state.ended(&cart, fail(), now);
        assert!(!state.is_due(&cart, &pod(), true, now), "not at once again");
        assert!(state.is_due(&pay, &pod(), true, now));
        assert!(state.is_due(&cart, &pod(), true, now + RETRY));
        state.ended(&pay, Ok(7), now);
        let leaves = || Err(RollFault::NotNow("it leaves".to_owned()));
        (0..9).for_each(|_| state.ended(&pay, leaves(), now));
        for _ in 0..MOST_FAILURES {
            assert_eq!(state.stopped, "");
            state.ended(&cart, fail(), now);
        }
        let why = "3 new workers in a row failed, the last one that of shop/cart: it broke";
        assert_eq!(state.stopped, why);
        assert_eq!((state.done, state.failed), (1, 4));
    }
}
