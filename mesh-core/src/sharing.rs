//! Identities that different services share: policy and secure naming can't tell such
//! services apart, so the operator is told.

use std::collections::{BTreeMap, BTreeSet};

use crate::identity::Identity;
use crate::model::{Mesh, ServiceKey};

/// For each identity that stands for more than one service: the groups of services that have
/// no pod in common. Services in front of the same pods (a headless twin, say) are one group.
#[must_use]
pub fn shared_identities(mesh: &Mesh) -> BTreeMap<Identity, Vec<BTreeSet<ServiceKey>>> {
    let mut groups: BTreeMap<Identity, Vec<BTreeSet<ServiceKey>>> = BTreeMap::new();
    for workload in mesh.workloads().filter(|w| !w.services.is_empty()) {
        let mut merged: BTreeSet<ServiceKey> = workload.services.keys().cloned().collect();
        let known = groups.entry(workload.identity.clone()).or_default();
        known.retain(|group| {
            let apart = group.is_disjoint(&merged);
            if !apart {
                merged.extend(group.iter().cloned());
            }
            apart
        });
        known.push(merged);
    }
    groups.retain(|_, groups| groups.len() > 1);
    groups
}
