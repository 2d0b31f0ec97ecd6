//! What a pod's worker may use: its cgroup's part, put in force and reported here, and the part
//! that the worker itself keeps to.

use std::os::fd::OwnedFd;

use mesh_api::convert::budget::limits;
use mesh_api::worker::{FdKind, Limits};
use mesh_core::budget::Budget;

use super::discovery::View;
use super::workers::PodTask;
use crate::sandbox::cgroup;

/// Processes and threads of a worker's cgroup: two workers while one replaces the other, and what
/// the kernel counts until a dead one is gone.
const PIDS_MAX: u32 = 32;

/// MiB that the limit of a worker's cgroup grows by for each worker that drains or is being born
/// in it: what an idle worker takes, with room to spare. So a replacement brings none nearer to
/// its limit than it was.
const BESIDE_MIB: u32 = 32;

/// A pod's budget.
#[derive(Clone, Debug, Default)]
pub(super) struct Allotment {
    pub(super) budget: Budget,
    /// Workers in the cgroup besides the one that serves.
    beside: u32,
    /// The cgroup has all of it that the machine can enforce.
    in_force: bool,
    /// What was said of what is not, so that it is said once.
    said: Vec<String>,
}

impl Allotment {
    /// Limit of all that is in the cgroup; 0 is none.
    pub(super) fn memory_max_mib(&self) -> u32 {
        match self.budget.memory_max_mib {
            0 => 0,
            own => own.saturating_add(self.beside.saturating_mul(BESIDE_MIB)),
        }
    }
}

impl PodTask {
    /// The worker's cgroup, with its budget.
    pub(super) fn make_cgroup(&mut self) -> Result<(), String> {
        let discovery = self.shared.discovery.clone();
        if let Some(view) = discovery.known() {
            self.take_budget(&view);
        }
        self.set_cgroup()
    }

    /// Takes in what discovery says of the budget, and has a cgroup that is there follow it.
    pub(super) fn follow_budget(&mut self, view: &View) {
        self.take_budget(view);
        self.settle_budget();
    }

    /// So many workers are in the cgroup besides the one that serves; whether that is news.
    pub(super) fn workers_beside(&mut self, beside: usize) -> bool {
        let beside = u32::try_from(beside).unwrap_or(u32::MAX);
        let news = self.allotment.beside != beside;
        if news {
            self.allotment.beside = beside;
            self.allotment.in_force = false;
            self.settle_budget();
        }
        news
    }

    /// Puts into the cgroup what is not in force yet.
    pub(super) fn settle_budget(&mut self) {
        if self.allotment.in_force || self.cgroup.is_none() {
            return;
        }
        if let Err(why) = self.set_cgroup() {
            tracing::error!(pod = %self.record.key, why, "the worker's budget could not be set");
        }
    }

    fn take_budget(&mut self, view: &View) {
        // One that discovery knows no more keeps its budget until it is taken out.
        let Some(workload) = view.mesh.workload(&self.goal.uid) else {
            return;
        };
        let budget = workload.budget.resolve();
        if budget != self.allotment.budget {
            tracing::info!(pod = %self.record.key, ?budget, "the budget of the pod's worker changes");
            self.allotment.budget = budget;
            self.allotment.in_force = false;
        }
    }

    fn set_cgroup(&mut self) -> Result<(), String> {
        let (key, allotment) = (&self.record.key, &mut self.allotment);
        let budget = &allotment.budget;
        let cgroup = self.shared.mesh_cgroup.pod(
            &key.namespace,
            &key.name,
            cgroup::Budget {
                cpu_weight: budget.cpu_weight,
                cpu_max_millicores: budget.cpu_max_millicores,
                memory_max_bytes: u64::from(allotment.memory_max_mib()) << 20,
                pids_max: PIDS_MAX,
            },
        );
        let cgroup = cgroup.map_err(|e| e.to_string())?;
        let lacks = cgroup.unenforced();
        if allotment.said != lacks {
            for line in lacks {
                tracing::warn!(pod = %key, "{line}");
            }
            allotment.said = lacks.to_vec();
        }
        allotment.in_force = lacks.is_empty();
        self.report.send_modify(|report| {
            report.budget = cgroup.enforced().to_vec();
            report.budget_unenforced = lacks.to_vec();
        });
        self.cgroup = Some(cgroup);
        Ok(())
    }

    /// The worker's part of the budget.
    pub(super) fn limits(&self) -> Limits {
        let budget = &self.allotment.budget;
        let drain = self.shared.config.tunnel_drain;
        Limits {
            memory_max_mib: self.allotment.memory_max_mib(),
            tunnel_drain_ms: u32::try_from(drain.as_millis()).unwrap_or(u32::MAX),
            ..limits(budget)
        }
    }

    /// What a new worker measures its memory by, with what it is.
    pub(super) fn memory_used(&self) -> Option<(i32, OwnedFd)> {
        let file = self.cgroup.as_ref()?.memory_used()?;
        Some((FdKind::MemoryUsed as i32, file.into()))
    }
}
