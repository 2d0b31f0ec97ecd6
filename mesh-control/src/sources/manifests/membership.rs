//! How a pod is in the mesh: by labels of its namespace, which labels of its own overrule.

use std::collections::BTreeMap;

use mesh_core::model::{Enrolment, ForeignProcesses, TunnelPort};

use super::Mistake;
use super::document::{Found, Place};
use super::schema::Metadata;

/// Whether a pod is in the mesh, and how far.
const ENROLL_LABEL: &str = "nodemesh.dev/enroll";
/// Where tunnels to it go.
const TUNNEL_PORT_LABEL: &str = "nodemesh.dev/tunnel-port";
/// What becomes of processes in its network that are none of its own.
const FOREIGN_LABEL: &str = "nodemesh.dev/foreign-processes";
/// All labels that say how a pod is in the mesh.
pub(super) const LABELS: [&str; 3] = [ENROLL_LABEL, TUNNEL_PORT_LABEL, FOREIGN_LABEL];

type Labels = BTreeMap<String, String>;

fn enrolment(value: &str) -> Result<Enrolment, &'static str> {
    match value {
        "true" | "enforce" => Ok(Enrolment::Enforce),
        "audit" => Ok(Enrolment::Audit),
        "false" => Ok(Enrolment::None),
        _ => Err(r#"none of "true", "enforce", "audit", "false""#),
    }
}

fn tunnel_port(value: &str) -> Result<TunnelPort, &'static str> {
    match value {
        "original" => Ok(TunnelPort::Original),
        "hbone" => Ok(TunnelPort::Hbone),
        _ => Err(r#"none of "original", "hbone""#),
    }
}

fn foreign_processes(value: &str) -> Result<ForeignProcesses, &'static str> {
    match value {
        "audit" => Ok(ForeignProcesses::Audit),
        "refuse" => Ok(ForeignProcesses::Refuse),
        "refuse-exec" => Ok(ForeignProcesses::RefuseExec),
        _ => Err(r#"none of "audit", "refuse", "refuse-exec""#),
    }
}

/// How far a pod with these labels, in a namespace with those, is in the mesh.
pub(super) fn enrolment_of(pod: &Labels, namespace: Option<&Labels>) -> Enrolment {
    nearest(ENROLL_LABEL, pod, namespace, enrolment)
}

/// Where tunnels to such a pod go.
pub(super) fn tunnel_port_of(pod: &Labels, namespace: Option<&Labels>) -> TunnelPort {
    nearest(TUNNEL_PORT_LABEL, pod, namespace, tunnel_port)
}

/// What becomes of foreign processes in such a pod's network.
pub(super) fn foreign_processes_of(pod: &Labels, namespace: Option<&Labels>) -> ForeignProcesses {
    nearest(FOREIGN_LABEL, pod, namespace, foreign_processes)
}

fn nearest<T: Default>(
    label: &str,
    pod: &Labels,
    namespace: Option<&Labels>,
    read: fn(&str) -> Result<T, &'static str>,
) -> T {
    let value = pod.get(label).or_else(|| namespace?.get(label));
    value.and_then(|value| read(value).ok()).unwrap_or_default()
}

/// Finds values that say nothing.
pub(super) fn check(found: &Found, mistakes: &mut Vec<Mistake>) {
    for placed in &found.namespaces {
        check_labels(&placed.object.metadata, &placed.place, mistakes);
    }
    for placed in &found.pods {
        check_labels(&placed.object.metadata, &placed.place, mistakes);
    }
}

fn check_labels<N>(metadata: &Metadata<N>, place: &Place, mistakes: &mut Vec<Mistake>) {
    for label in LABELS {
        let Some(value) = metadata.labels.get(label) else {
            continue;
        };
        let read = match label {
            ENROLL_LABEL => enrolment(value).map(drop),
            TUNNEL_PORT_LABEL => tunnel_port(value).map(drop),
            _ => foreign_processes(value).map(drop),
        };
        if let Err(wanted) = read {
            let path = ["metadata".into(), "labels".into(), label.into()];
            mistakes.push(place.mistake(&path, format!("{value:?} is {wanted}")));
        }
    }
}
