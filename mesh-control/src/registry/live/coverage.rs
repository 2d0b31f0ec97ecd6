//! Where an object of the mesh's own kinds is in force, by what nodes report of their workers.

use std::collections::BTreeMap;
use std::time::Instant;

use mesh_core::model::Workload;
use mesh_core::policy::{MESH_NAMESPACE, Target};

use super::{Registry, State};

/// Whom an object is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The namespace that the object is in.
    pub namespace: String,
    /// Whom it selects from there.
    pub target: Target,
    /// How discovery names it, if it comes as a policy.
    pub policy: Option<String>,
}

/// On how many nodes it is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Nodes with enrolled pods that it is for.
    pub nodes: usize,
    /// Those of them where the workers of all these pods have it.
    pub in_force: usize,
    /// Nodes that have not reported to this process.
    pub unheard: usize,
    /// Why it is not in force on each of the others, by node.
    pub missing: BTreeMap<String, String>,
}

/// What is so on one node.
enum Finding {
    InForce,
    Unheard,
    Missing(String),
}

impl Registry {
    /// On how many nodes something is in force that has been served since the state of this number
    /// ([`Registry::set_sources`]).
    #[must_use]
    pub fn coverage(&self, scope: &Scope, since: u64, now: Instant) -> Coverage {
        let state = self.lock();
        let mut nodes: BTreeMap<&str, Finding> = BTreeMap::new();
        state.each_selected(scope, |workload| {
            let finding = nodes
                .entry(&workload.node)
                .or_insert_with(|| state.node_has(&workload.node, scope, now));
            if let Finding::InForce = finding
                && let Some(why) = state.worker_lacks(workload, since)
            {
                *finding = Finding::Missing(why);
            }
        });
        let mut coverage = Coverage {
            nodes: nodes.len(),
            ..Coverage::default()
        };
        for (node, finding) in nodes {
            let why = match finding {
                Finding::InForce => {
                    coverage.in_force += 1;
                    continue;
                }
                Finding::Unheard => {
                    coverage.unheard += 1;
                    "has not reported since this mesh-control started".to_owned()
                }
                Finding::Missing(why) => why,
            };
            coverage.missing.insert(node.to_owned(), why);
        }
        coverage
    }
}

impl State {
    fn each_selected<'a>(&'a self, scope: &Scope, mut with: impl FnMut(&'a Workload)) {
        let Scope {
            namespace, target, ..
        } = scope;
        let mut take = |workload: &'a Workload| {
            if workload.enrolled() && target.selects(namespace, workload) {
                with(workload);
            }
        };
        // From there it may be for the whole mesh.
        match namespace.as_str() {
            MESH_NAMESPACE => self.served.mesh().workloads().for_each(|w| take(w)),
            own => self.served.in_namespace(own).for_each(|w| take(w)),
        }
    }

    fn node_has(&self, node: &str, scope: &Scope, now: Instant) -> Finding {
        let Some(record) = self.nodes.get(node) else {
            return Finding::Unheard;
        };
        let named = scope.policy.as_ref();
        if record.silent(now) {
            Finding::Missing("has fallen silent".to_owned())
        } else if named.is_some_and(|name| record.unreadable.contains(name)) {
            Finding::Missing(
                "its agent can't read this version and takes it as strictly as it could be meant: update the agent".to_owned(),
            )
        } else {
            Finding::InForce
        }
    }

    /// Why a pod's worker does not have what has been served since then.
    fn worker_lacks(&self, workload: &Workload, since: u64) -> Option<String> {
        let pod = format!("{}/{}", workload.identity.namespace(), workload.name);
        let record = self.nodes.get(&workload.node)?;
        let Some(report) = record.pods.get(&workload.uid) else {
            return Some(format!("its agent does not serve pod {pod} yet"));
        };
        if report.policy_version.is_empty() {
            let (state, reason) = (&report.state, &report.reason);
            return Some(match reason.as_str() {
                "" => format!("pod {pod} is {state}"),
                reason => format!("pod {pod} is {state}: {reason}"),
            });
        }
        let has = self.versions.number(&report.policy_version);
        has.is_none_or(|has| has < since)
            .then(|| format!("the worker of pod {pod} has an older state of the mesh"))
    }
}
