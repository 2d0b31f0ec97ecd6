//! Policies: what they refer to must exist, and what they say must mean one thing.

use std::collections::BTreeMap;

use mesh_core::policy::MESH_NAMESPACE;

use super::services;
use crate::sources::manifests::Mistake;
use crate::sources::manifests::document::{Found, Place};
use crate::sources::manifests::locate::{Step, steps};
use crate::sources::manifests::schema::policy::{Object, Peer, Rule, Target};
use crate::sources::manifests::schema::traffic::{HealthCheck, OutlierDetection, ServicePolicy};
use crate::sources::manifests::schema::{Service, is_tcp};

/// The longest time that a policy can name.
const MAX_MS: u64 = 24 * 3600 * 1000;
/// The shortest time between two probes of one endpoint.
const MIN_INTERVAL_MS: u64 = 100;
const MAX_THRESHOLD: u32 = 100;
/// Most health checks of one service: each endpoint's worker makes them all.
const MAX_CHECKS: usize = 8;

type Services<'a> = BTreeMap<(&'a str, &'a str), &'a Service>;

/// Notes mistakes in one document.
pub(super) struct Notes<'a> {
    place: &'a Place,
    mistakes: &'a mut Vec<Mistake>,
}

impl Notes<'_> {
    pub(super) fn note(&mut self, path: &[Step], what: impl Into<String>) {
        self.mistakes.push(self.place.mistake(path, what));
    }

    fn dangling(&mut self, path: &[Step], what: impl Into<String>) {
        self.mistakes.push(self.place.dangling(path, what));
    }
}

pub(super) fn check(found: &Found, mistakes: &mut Vec<Mistake>) {
    let services = services(found);
    for placed in &found.authorizations {
        let notes = &mut Notes {
            place: &placed.place,
            mistakes,
        };
        let spec = &placed.object.spec;
        target(&placed.object, spec.target.as_ref(), &services, notes);
        if spec.rules.is_empty() {
            notes.note(
                &steps!["spec", "rules"],
                "empty: a policy without rules matches nothing; a rule {} matches every member of the mesh (Deny: everybody) on every port",
            );
        }
        for (index, rule) in spec.rules.iter().enumerate() {
            self::rule(rule, &steps!["spec", "rules", index], notes);
        }
    }
    for placed in &found.authentications {
        let notes = &mut Notes {
            place: &placed.place,
            mistakes,
        };
        let spec = &placed.object.spec;
        target(&placed.object, spec.target.as_ref(), &services, notes);
        if spec.mode.is_none() && spec.ports.is_empty() {
            notes.note(
                &steps!["spec"],
                "says nothing: give mode, ports, or both, with Strict or Permissive",
            );
        }
    }
    for placed in &found.budgets {
        let notes = &mut Notes {
            place: &placed.place,
            mistakes,
        };
        let spec = &placed.object.spec;
        target(&placed.object, spec.target.as_ref(), &services, notes);
        super::budget::check(spec, notes);
    }
    let mut first = BTreeMap::new();
    for placed in &found.service_policies {
        let notes = &mut Notes {
            place: &placed.place,
            mistakes,
        };
        let object = &placed.object;
        let service = (object.namespace(), object.spec.service.0.as_str());
        if let Some(other) = first.insert(service, &placed.place) {
            let what = format!(
                "Service {:?} has a ServicePolicy already: {}",
                service.1,
                other.shown()
            );
            notes.note(&steps!["spec", "service"], what);
        }
        service_policy(object, services.get(&service).copied(), notes);
    }
}

fn unknown_service(namespace: &str, name: &str) -> String {
    format!("there is no Service {name:?} in namespace {namespace:?}")
}

fn target<S>(
    object: &Object<S>,
    target: Option<&Target>,
    services: &Services<'_>,
    notes: &mut Notes<'_>,
) {
    const ABSENT: &str = "leave target out for the whole namespace";
    let Some(Target {
        mesh,
        service,
        labels,
    }) = target
    else {
        return;
    };
    let namespace = object.namespace();
    let given = [mesh.is_some(), service.is_some(), labels.is_some()];
    if given.into_iter().filter(|given| *given).count() != 1 {
        let what = format!("give exactly one of mesh, service, labels, or {ABSENT}");
        return notes.note(&steps!["spec", "target"], what);
    }
    match mesh {
        Some(false) => notes.note(&steps!["spec", "target", "mesh"], ABSENT),
        Some(true) if namespace != MESH_NAMESPACE => {
            let what = format!(
                "the policy is in namespace {namespace:?}, and only those in {MESH_NAMESPACE:?} can be for the whole mesh"
            );
            notes.note(&steps!["spec", "target", "mesh"], what);
        }
        _ => {}
    }
    if let Some(service) = service
        && !services.contains_key(&(namespace, service.0.as_str()))
    {
        let what = unknown_service(namespace, &service.0);
        notes.dangling(&steps!["spec", "target", "service"], what);
    }
    if labels.as_ref().is_some_and(BTreeMap::is_empty) {
        let what = format!("empty: {ABSENT}");
        notes.note(&steps!["spec", "target", "labels"], what);
    }
}

fn rule(rule: &Rule, at: &[Step], notes: &mut Notes<'_>) {
    let below = |steps: &[Step]| [at, steps].concat();
    if rule.peers.as_ref().is_some_and(Vec::is_empty) {
        notes.note(
            &below(&steps!["peers"]),
            "empty: leave it out for every member of the mesh (Deny: everybody)",
        );
    }
    if rule.ports.as_ref().is_some_and(Vec::is_empty) {
        notes.note(
            &below(&steps!["ports"]),
            "empty: leave it out for every port of TCP (Deny: of UDP as well)",
        );
    }
    for (index, term) in rule.peers.iter().flatten().enumerate() {
        peer(term, &below(&steps!["peers", index]), notes);
    }
}

fn peer(peer: &Peer, at: &[Step], notes: &mut Notes<'_>) {
    let Peer {
        identity,
        namespace,
        service_account,
        service,
        labels,
        cidr,
    } = peer;
    let given = identity.is_some()
        || namespace.is_some()
        || service_account.is_some()
        || service.is_some()
        || labels.is_some()
        || cidr.is_some();
    if !given {
        notes.note(
            at,
            "empty: give at least one of identity, namespace, serviceAccount, service, labels, cidr",
        );
    }
    let below = |field: &str| [at, &steps![field]].concat();
    if service_account.is_some() && identity.is_some() {
        notes.note(
            &below("serviceAccount"),
            "identity says it already: give one of the two",
        );
    } else if service_account.is_some() && namespace.is_none() {
        notes.note(
            &below("serviceAccount"),
            "needs namespace beside it: service accounts of one name are in many",
        );
    }
    if labels.as_ref().is_some_and(BTreeMap::is_empty) {
        notes.note(
            &below("labels"),
            "empty: leave it out, or give labels that the peer must have",
        );
    }
}

fn service_policy(
    object: &Object<ServicePolicy>,
    service: Option<&Service>,
    notes: &mut Notes<'_>,
) {
    let spec = &object.spec;
    if service.is_none() {
        let what = unknown_service(object.namespace(), &spec.service.0);
        notes.dangling(&steps!["spec", "service"], what);
    }
    outliers(&spec.outlier_detection, notes);
    let checks = &spec.health_checks;
    if checks.len() > MAX_CHECKS {
        let what = format!("{} checks; at most {MAX_CHECKS} are made", checks.len());
        notes.note(&steps!["spec", "healthChecks"], what);
    }
    for (index, check) in checks.iter().enumerate() {
        let at = steps!["spec", "healthChecks", index];
        if let Some(service) = service {
            service_port(check, service, &at, notes);
        }
        health_check(check, &at, notes);
    }
}

fn outliers(detection: &OutlierDetection, notes: &mut Notes<'_>) {
    let mut note =
        |field: &str, what: String| notes.note(&steps!["spec", "outlierDetection", field], what);
    let (base, max) = (detection.base_ejection_ms, detection.max_ejection_ms);
    if !(1..=MAX_MS).contains(&max) {
        note("maxEjectionMs", format!("{max} is not from 1 to {MAX_MS}"));
    }
    if !(1..=max).contains(&base) {
        let what = format!("{base} is not from 1 to maxEjectionMs, {max}");
        note("baseEjectionMs", what);
    }
    let percent = detection.max_ejected_percent;
    if percent > 100 {
        let what = format!("{percent} is not from 0 to 100");
        note("maxEjectedPercent", what);
    }
}

fn service_port(check: &HealthCheck, service: &Service, at: &[Step], notes: &mut Notes<'_>) {
    let ports: Vec<_> = service
        .spec
        .ports
        .iter()
        .filter(|port| is_tcp(port.protocol.as_ref()))
        .map(|port| port.port.0.to_string())
        .collect();
    if !ports.contains(&check.port.0.to_string()) {
        let has = match ports.is_empty() {
            true => "no TCP port".to_owned(),
            false => format!("TCP ports {}", ports.join(", ")),
        };
        let what = format!("Service {:?} has {has}", service.metadata.name.0);
        notes.dangling(&[at, &steps!["port"]].concat(), what);
    }
}

fn health_check(check: &HealthCheck, at: &[Step], notes: &mut Notes<'_>) {
    let below = |field: &str| [at, &steps![field]].concat();
    if check.tcp.is_some() == check.http.is_some() {
        let what = "give one of tcp: {} and http: {path: /}";
        notes.note(at, what);
    }
    let HealthCheck {
        interval_ms: interval,
        timeout_ms: timeout,
        ..
    } = check;
    if !(MIN_INTERVAL_MS..=MAX_MS).contains(interval) {
        let what = format!("{interval} is not from {MIN_INTERVAL_MS} to {MAX_MS}");
        notes.note(&below("intervalMs"), what);
    }
    if *timeout == 0 || timeout > interval {
        let what = format!("{timeout} is not from 1 to intervalMs, {interval}");
        notes.note(&below("timeoutMs"), what);
    }
    for (field, value) in [
        ("unhealthyThreshold", check.unhealthy_threshold),
        ("healthyThreshold", check.healthy_threshold),
    ] {
        if !(1..=MAX_THRESHOLD).contains(&value) {
            let what = format!("{value} is not from 1 to {MAX_THRESHOLD}");
            notes.note(&below(field), what);
        }
    }
}
