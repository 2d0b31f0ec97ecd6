//! How a pod stands: what its task tells to whoever asks, and to the log.

use mesh_api::worker::Health;
use tokio::time::Instant;

use super::events::{self, LineBudget};
use super::report::PodState;
use super::workers::PodTask;

impl PodTask {
    /// Something is in the way for now.
    pub(super) fn stumbled(&self, why: &str) {
        self.report.send_modify(|report| {
            report.state = PodState::Starting;
            report.ready = false;
            why.clone_into(&mut report.reason);
        });
    }

    /// It can't be enrolled as it is.
    pub(super) fn refused(&self, why: &str) {
        let cut = self.cut;
        let changed = self.report.send_if_modified(|report| {
            let changed = report.reason != why;
            report.state = if cut {
                PodState::CutOff
            } else {
                PodState::Refused
            };
            why.clone_into(&mut report.reason);
            changed
        });
        if changed {
            tracing::error!(pod = %self.record.key, why, "the pod can't be enrolled; trying on");
        }
    }

    /// The worker says how its app is. `lines` bounds what it can make the log grow by.
    pub(super) fn health_told(&self, health: &Health, lines: &mut LineBudget) {
        let detail = events::clip(&health.detail);
        let news = self.report.send_if_modified(|report| {
            let news = report.unhealthy != health.unhealthy;
            report.unhealthy = health.unhealthy;
            let other = report.health_detail != detail;
            report.health_detail.clone_from(&detail);
            news || other
        });
        let pod = &self.record.key;
        match health.unhealthy {
            _ if !news || !lines.allow(Instant::now()) => {}
            true => {
                tracing::warn!(%pod, detail, "unhealthy: it gets no new connections through its services");
            }
            false => tracing::info!(%pod, "healthy"),
        }
    }

    pub(super) fn now_enrolled(&mut self, pid: i32) {
        let news = self.report.send_if_modified(|report| {
            let news = report.state != PodState::Enrolled || !report.ready;
            report.state = PodState::Enrolled;
            report.ready = true;
            report.located = true;
            report.reason.clear();
            news
        });
        if !news {
            return;
        }
        let (pod, identity) = (&self.record.key, &self.goal.identity);
        match self.ended_at.take() {
            None => tracing::info!(%pod, pid, identity, "enrolled"),
            Some(ended_at) => {
                let outage_ms = ended_at.elapsed().as_secs_f64() * 1e3;
                tracing::info!(%pod, pid, outage_ms, identity, "enrolled again, with a new worker");
            }
        }
    }
}
