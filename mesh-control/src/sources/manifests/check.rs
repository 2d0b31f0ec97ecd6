//! What one object can't know: names that must exist, names and addresses that must be
//! unique.

mod budget;
mod policy;
mod revocation;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_core::policy::MESH_NAMESPACE;

use super::document::{Found, Place, Placed};
use super::locate::Step;
use super::schema::{self, Metadata, Pod, Service, is_tcp};
use super::{Mistake, membership};

/// The namespace that exists in every cluster.
pub(super) const DEFAULT_NAMESPACE: &str = "default";
/// The service account that exists in every namespace.
pub(super) const DEFAULT_ACCOUNT: &str = "default";

/// Appends every mistake between objects to those found while reading.
pub(super) fn check(found: &mut Found) {
    let mut mistakes = Vec::new();
    names(found, &mut mistakes);
    membership::check(found, &mut mistakes);
    accounts(found, &mut mistakes);
    addresses(found, &mut mistakes);
    for pod in &found.pods {
        container_ports(pod, &mut mistakes);
    }
    for service in &found.services {
        service_ports(service, &mut mistakes);
    }
    policy::check(found, &mut mistakes);
    revocation::check(found, &mut mistakes);
    found.mistakes.append(&mut mistakes);
}

/// The namespaces there are.
pub(super) fn namespaces(found: &Found) -> BTreeSet<&str> {
    let named = found.namespaces.iter();
    named
        .map(|n| n.object.metadata.name.0.as_str())
        .chain([DEFAULT_NAMESPACE, MESH_NAMESPACE])
        .collect()
}

/// The services that have endpoints or addresses, by namespace and name.
pub(super) fn services(found: &Found) -> BTreeMap<(&str, &str), &Service> {
    let services = found.services.iter().map(|placed| &placed.object);
    services
        .filter(|service| !service.external())
        .map(|service| {
            let Metadata { name, .. } = &service.metadata;
            ((namespace_of(&service.metadata), name.0.as_str()), service)
        })
        .collect()
}

pub(super) fn namespace_of<N>(metadata: &Metadata<N>) -> &str {
    metadata
        .namespace
        .as_ref()
        .map_or(DEFAULT_NAMESPACE, |n| &n.0)
}

/// A pod that no longer runs: it holds neither address nor identity.
pub(super) fn ended(pod: &Pod) -> bool {
    matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The pod's addresses, with the path of each.
pub(super) fn pod_addresses(pod: &Pod) -> Vec<(IpAddr, Vec<Step>)> {
    let status = Step::from("status");
    let mut addresses: Vec<(IpAddr, Vec<Step>)> = pod
        .status
        .pod_ips
        .iter()
        .enumerate()
        .map(|(i, ip)| {
            (
                ip.ip.0,
                vec![status.clone(), "podIPs".into(), i.into(), "ip".into()],
            )
        })
        .collect();
    if let Some(ip) = &pod.status.pod_ip
        && !addresses.iter().any(|(known, _)| *known == ip.0)
    {
        addresses.push((ip.0, vec![status, "podIP".into()]));
    }
    addresses
}

/// The service's virtual addresses, with the path of each.
pub(super) fn service_addresses(service: &Service) -> Vec<(IpAddr, Vec<Step>)> {
    let spec = Step::from("spec");
    let mut addresses: Vec<(IpAddr, Vec<Step>)> = service
        .spec
        .cluster_ips
        .iter()
        .enumerate()
        .filter_map(|(i, ip)| Some((ip.0?, vec![spec.clone(), "clusterIPs".into(), i.into()])))
        .collect();
    if let Some(ip) = service.spec.cluster_ip.as_ref().and_then(|ip| ip.0)
        && !addresses.iter().any(|(known, _)| *known == ip)
    {
        addresses.push((ip, vec![spec, "clusterIP".into()]));
    }
    addresses
}

fn names(found: &Found, mistakes: &mut Vec<Mistake>) {
    let known = namespaces(found);
    let mut seen: BTreeMap<(&str, &str, &str), &Place> = BTreeMap::new();
    let mut see = |kind, namespace, name, place| {
        if let Some(first) = seen.insert((kind, namespace, name), place) {
            let what = format!("{kind} {name:?} is there already: {}", first.shown());
            mistakes.push(Place::mistake(
                place,
                &["metadata".into(), "name".into()],
                what,
            ));
        }
        if !namespace.is_empty() && !known.contains(namespace) {
            let what = format!("there is no Namespace {namespace:?} in these manifests");
            mistakes.push(place.dangling(&["metadata".into(), "namespace".into()], what));
        }
    };
    for Placed { object, place } in &found.namespaces {
        see("Namespace", "", &object.metadata.name.0, place);
    }
    for Placed { object, place } in &found.accounts {
        let (namespace, name) = (namespace_of(&object.metadata), &object.metadata.name.0);
        see("ServiceAccount", namespace, name, place);
    }
    for Placed { object, place } in &found.pods {
        let (namespace, name) = (namespace_of(&object.metadata), &object.metadata.name.0);
        see("Pod", namespace, name, place);
    }
    for Placed { object, place } in &found.services {
        let (namespace, name) = (namespace_of(&object.metadata), &object.metadata.name.0);
        see("Service", namespace, name, place);
    }
    for Placed { object, place } in &found.slices {
        let (namespace, name) = (namespace_of(&object.metadata), &object.metadata.name.0);
        see("EndpointSlice", namespace, name, place);
    }
    for Placed { object, place } in &found.nodes {
        see("Node", "", &object.metadata.name.0, place);
    }
    for Placed { object, place } in &found.authorizations {
        let schema::policy::Metadata { name, .. } = &object.metadata;
        see("AuthorizationPolicy", object.namespace(), &name.0, place);
    }
    for Placed { object, place } in &found.authentications {
        let schema::policy::Metadata { name, .. } = &object.metadata;
        see("AuthenticationPolicy", object.namespace(), &name.0, place);
    }
    for Placed { object, place } in &found.service_policies {
        let schema::policy::Metadata { name, .. } = &object.metadata;
        see("ServicePolicy", object.namespace(), &name.0, place);
    }
    for Placed { object, place } in &found.budgets {
        let schema::policy::Metadata { name, .. } = &object.metadata;
        see("WorkerBudget", object.namespace(), &name.0, place);
    }
    for Placed { object, place } in &found.revocations {
        let schema::policy::Metadata { name, .. } = &object.metadata;
        see("Revocation", object.namespace(), &name.0, place);
    }
}

fn accounts(found: &Found, mistakes: &mut Vec<Mistake>) {
    let known: BTreeSet<(&str, &str)> = found
        .accounts
        .iter()
        .map(|a| {
            (
                namespace_of(&a.object.metadata),
                a.object.metadata.name.0.as_str(),
            )
        })
        .collect();
    for Placed { object, place } in &found.pods {
        let Some(account) = &object.spec.service_account_name else {
            continue;
        };
        let namespace = namespace_of(&object.metadata);
        if account.0 != DEFAULT_ACCOUNT && !known.contains(&(namespace, account.0.as_str())) {
            let what = format!(
                "there is no ServiceAccount {:?} in namespace {namespace:?}",
                account.0
            );
            mistakes.push(place.dangling(&["spec".into(), "serviceAccountName".into()], what));
        }
    }
}

fn addresses(found: &Found, mistakes: &mut Vec<Mistake>) {
    let mut owners: BTreeMap<IpAddr, (String, &Place)> = BTreeMap::new();
    let mut own = |address: IpAddr, path: &[Step], who: String, place| {
        if let Some((other, first)) = owners.get(&address) {
            let what = format!(
                "{address} is the address of {other} already: {}",
                first.shown()
            );
            mistakes.push(Place::mistake(place, path, what));
        } else {
            owners.insert(address, (who, place));
        }
    };
    // Pods in the host's network namespace share the node's addresses by design.
    let pods = found
        .pods
        .iter()
        .filter(|pod| !ended(&pod.object) && !pod.object.spec.host_network);
    for Placed { object, place } in pods {
        let metadata = &object.metadata;
        for (address, path) in pod_addresses(object) {
            let who = format!("Pod {}/{}", namespace_of(metadata), metadata.name.0);
            own(address, &path, who, place);
        }
    }
    for Placed { object, place } in &found.services {
        let metadata = &object.metadata;
        for (address, path) in service_addresses(object) {
            let who = format!("Service {}/{}", namespace_of(metadata), metadata.name.0);
            own(address, &path, who, place);
        }
    }
}

fn container_ports(pod: &Placed<Pod>, mistakes: &mut Vec<Mistake>) {
    let mut seen = BTreeSet::new();
    for (c, container) in pod.object.spec.containers.iter().enumerate() {
        for (p, port) in container.ports.iter().enumerate() {
            let Some(name) = &port.name else { continue };
            if !seen.insert(&name.0) {
                let steps = ["spec".into(), "containers".into(), c.into()];
                let path = [&steps[..], &["ports".into(), p.into(), "name".into()]].concat();
                let what = format!("the pod has a port named {:?} already", name.0);
                mistakes.push(pod.place.mistake(&path, what));
            }
        }
    }
}

fn service_ports(service: &Placed<Service>, mistakes: &mut Vec<Mistake>) {
    let ports = &service.object.spec.ports;
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = |field: &str| ["spec".into(), "ports".into(), index.into(), field.into()];
        match &port.name {
            Some(name) if !names.insert(&name.0) => {
                let what = format!("the service has a port named {:?} already", name.0);
                mistakes.push(service.place.mistake(&path("name"), what));
            }
            None if ports.len() > 1 => {
                let what = "missing: with several ports each needs a name";
                mistakes.push(service.place.mistake(&path("name"), what));
            }
            _ => {}
        }
        if !numbers.insert((port.port.0, is_tcp(port.protocol.as_ref()))) {
            let what = format!("the service has port {} already", port.port.0);
            mistakes.push(service.place.mistake(&path("port"), what));
        }
    }
}
