//! Processes that use a pod's network and are none of its own: a port-forward, an exec. The kernel
//! programs tell them by the pod's cgroup, which is looked for here, and do with them what the
//! pod's label says; what they notice is told of by `noticed`.
//!
//! A pod's cgroup has processes only after the pod was enrolled, and on some nodes it is in
//! cgroup v1 alone. Until it is known, and where it never is, nobody is told apart: to refuse
//! whoever can't be told would cut off the pod itself.

mod cgroup;
mod noticed;

use std::time::Duration;

use mesh_common::{
    OWN_KNOWN, OWN_REFUSE_ENTERED, OWN_REFUSE_FOREIGN, OWN_TELL_ENTERED, OwnProcesses,
};
use mesh_core::model::{Enrolment, ForeignProcesses, Workload};
use tokio::time::Instant;

use super::workers::PodTask;
use cgroup::{OwnCgroup, Search};
pub(super) use noticed::follow;

/// Between two searches for a pod's cgroup, at first and at most: each goes through all processes.
const SEARCH: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(300));

const UNKNOWN: OwnProcesses = OwnProcesses {
    cgroup_id: 0,
    cgroup_level: 0,
    flags: 0,
};

/// What is known of one pod's own processes.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    own: Option<OwnCgroup>,
    /// What the kernel was told; `None` where it is not known what it has.
    in_kernel: Option<OwnProcesses>,
    /// When the next search is, and how long after it the one that follows.
    search: Option<(Instant, Duration)>,
    /// It was said that the cgroup can't be had.
    lack_told: bool,
}

impl Foreign {
    /// The pod's slot was made anew.
    pub(super) fn kernel_was_emptied(&mut self) {
        self.in_kernel = Some(UNKNOWN);
    }

    fn is_search_due(&mut self, now: Instant) -> bool {
        let (at, wait) = *self.search.get_or_insert((now, SEARCH.0));
        let due = now >= at;
        if due {
            self.search = Some((now + wait, (wait * 2).min(SEARCH.1)));
        }
        due
    }
}

/// What the kernel is to do with the processes of a pod whose cgroup is known.
fn flags(workload: &Workload) -> u32 {
    // In audit nothing is kept from a pod, whatever it is.
    let enforced = workload.enrolment == Enrolment::Enforce;
    let [foreign, entered] = match workload.foreign_processes {
        ForeignProcesses::Audit => [false, false],
        ForeignProcesses::Refuse => [enforced, false],
        ForeignProcesses::RefuseExec => [enforced, enforced],
    };
    let flag = |flag: u32, is_set: bool| if is_set { flag } else { 0 };
    OWN_KNOWN
        | flag(OWN_REFUSE_FOREIGN, foreign)
        | flag(OWN_TELL_ENTERED, !workload.shares_processes)
        | flag(OWN_REFUSE_ENTERED, entered)
}

/// The same for the operator.
fn words(flags: u32) -> &'static str {
    if flags & OWN_REFUSE_ENTERED != 0 {
        "refuse-exec"
    } else if flags & OWN_REFUSE_FOREIGN != 0 {
        "refuse"
    } else {
        "audit"
    }
}

impl PodTask {
    /// Looks whether the pod's cgroup is still what it was; searches for it where it isn't known.
    pub(super) fn look_at_processes(&mut self) {
        let now = Instant::now();
        if self.foreign.own.as_ref().is_some_and(|own| !own.stands()) {
            self.foreign.own = None;
            self.foreign.search = None;
        }
        if self.foreign.own.is_none() && self.foreign.is_search_due(now) {
            self.search_cgroup();
        }
        self.follow_foreign();
    }

    fn search_cgroup(&mut self) {
        let uid = match self.record.origin.pod_uid.as_str() {
            "" => self.rules.workload().map_or("", |w| w.pod_uid.as_str()),
            uid => uid,
        };
        let folder = self.shared.mesh_cgroup.root();
        match cgroup::search(folder, uid, self.netns.id) {
            Search::Found(own) => {
                tracing::debug!(pod = %self.record.key, cgroup = %own.folder().display(), "the pod's own cgroup is known");
                self.foreign.own = Some(own);
                self.foreign.lack_told = false;
            }
            // It starts, or nobody knows its UID.
            Search::NoProcess => {}
            Search::NotInV2 => {
                if !std::mem::replace(&mut self.foreign.lack_told, true) {
                    tracing::warn!(pod = %self.record.key, "the pod's processes have no cgroup of the pod in cgroup v2, so foreign ones in its network are neither noticed nor refused");
                }
            }
        }
    }

    /// Has the kernel do what discovery says now.
    pub(super) fn follow_foreign(&mut self) {
        let Some(workload) = self.rules.workload() else {
            return;
        };
        let own = self.foreign.own.as_ref();
        // What an earlier supervisor has told the kernel stands until there was a search.
        if own.is_none() && self.foreign.search.is_none() {
            return;
        }
        let wanted = own.map_or(UNKNOWN, |own| own.with(flags(workload)));
        let told = own.map_or("", |_| words(wanted.flags));
        if self.foreign.in_kernel == Some(wanted) {
            return;
        }
        let set = self
            .shared
            .capture()
            .set_processes(self.record.slot, wanted);
        match set {
            Ok(()) => self.foreign.in_kernel = Some(wanted),
            Err(e) => {
                self.foreign.in_kernel = None;
                tracing::error!(pod = %self.record.key, error = %e, "the kernel was not told which processes are the pod's own; trying again");
            }
        }
        self.report
            .send_modify(|report| told.clone_into(&mut report.foreign_processes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::identity::Identity;

    #[test]
    fn only_what_is_enforced_is_refused() {
        let identity = Identity::new("cluster.local".parse().unwrap(), "shop", "cart").unwrap();
        let mut workload = Workload::new("uid", "cart", identity);
        let (tell, foreign) = (OWN_KNOWN | OWN_TELL_ENTERED, OWN_REFUSE_FOREIGN);
        for (enrolment, label, wanted, word) in [
            (Enrolment::Enforce, ForeignProcesses::Audit, tell, "audit"),
            (
                Enrolment::Enforce,
                ForeignProcesses::Refuse,
                tell | foreign,
                "refuse",
            ),
            (
                Enrolment::Enforce,
                ForeignProcesses::RefuseExec,
                tell | foreign | OWN_REFUSE_ENTERED,
                "refuse-exec",
            ),
            (
                Enrolment::Audit,
                ForeignProcesses::RefuseExec,
                tell,
                "audit",
            ),
        ] {
            workload.enrolment = enrolment;
            workload.foreign_processes = label;
            let found = flags(&workload);
            assert_eq!((found, words(found)), (wanted, word));
        }
        workload.shares_processes = true;
        assert_eq!(flags(&workload) & OWN_TELL_ENTERED, 0);
    }

    #[test]
    fn searches_become_rarer() {
        let (mut foreign, start) = (Foreign::default(), Instant::now());
        let looks = (0..720).map(|n| start + Duration::from_secs(5 * n));
        let searched: Vec<u64> = looks
            .filter(|now| foreign.is_search_due(*now))
            .map(|now| (now - start).as_secs())
            .collect();
        assert_eq!(&searched[..4], [0, 5, 15, 35]);
        let gaps: Vec<u64> = searched.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.iter().all(|gap| *gap <= 300), "{gaps:?}");
        assert!(gaps.ends_with(&[300, 300]), "{gaps:?}");
    }
}
