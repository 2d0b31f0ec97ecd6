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

/// Namespaces with several enrolled pods that all run as the service account `default`, and how
/// many pods those are: nothing tells such pods apart but their labels.
#[must_use]
pub fn default_alone(mesh: &Mesh) -> BTreeMap<String, usize> {
    let mut all: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
    for workload in mesh.workloads().filter(|w| w.enrolled()) {
        let identity = &workload.identity;
        let (pods, alone) = all.entry(identity.namespace()).or_insert((0, true));
        *pods += 1;
        *alone &= identity.service_account() == "default";
    }
    all.into_iter()
        .filter(|(_, (pods, alone))| *alone && *pods > 1)
        .map(|(namespace, (pods, _))| (namespace.to_owned(), pods))
        .collect()
}
