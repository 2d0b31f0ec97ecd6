//! The manifests that the control component reads: the lab's plan as Kubernetes-style YAML.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::plan::{Enrolment, Locality, PodSpec, ServiceSpec};

/// Label that enrols a namespace.
pub const ENROLL_LABEL: &str = "nodemesh.dev/enroll";

pub(crate) fn namespace(name: &str, enrolment: Enrolment) -> String {
    let level = match enrolment {
        Enrolment::None => "false",
        Enrolment::Audit => "audit",
        Enrolment::Enforce => "true",
    };
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  \
         labels:\n    {ENROLL_LABEL}: \"{level}\"\n"
    )
}

pub(crate) fn node(name: &str, locality: &Locality) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    \
         topology.kubernetes.io/region: {}\n    topology.kubernetes.io/zone: {}\n",
        locality.region, locality.zone
    )
}

/// One of the mesh's own kinds, with its `spec` in YAML's flow style.
#[must_use]
pub fn own(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: nodemesh.dev/v1alpha1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// An authorization policy, by `<namespace>/<name>`, with its `spec` in YAML's flow style.
///
/// # Panics
/// If the key is no such one.
#[must_use]
pub fn authorization(key: &str, spec: &str) -> String {
    let (namespace, name) = key.split_once('/').expect("<namespace>/<name>");
    own("AuthorizationPolicy", namespace, name, spec)
}

/// An authentication policy, as [`authorization`].
///
/// # Panics
/// If the key is no such one.
#[must_use]
pub fn authentication(key: &str, spec: &str) -> String {
    let (namespace, name) = key.split_once('/').expect("<namespace>/<name>");
    own("AuthenticationPolicy", namespace, name, spec)
}

/// A service policy for the service of that key, as [`authorization`].
///
/// # Panics
/// If the key is no such one.
#[must_use]
pub fn service_policy(key: &str, spec: &str) -> String {
    let (namespace, name) = key.split_once('/').expect("<namespace>/<name>");
    own("ServicePolicy", namespace, name, spec)
}

/// Members of the mesh may talk to members, on every TCP port; nothing else is allowed.
pub(crate) fn members_talk_to_members() -> String {
    ["Inbound", "Outbound"]
        .map(|direction| {
            let key = format!("nodemesh-system/members-{}", direction.to_lowercase());
            let spec = format!(
                "{{target: {{mesh: true}}, direction: {direction}, action: Allow, rules: [{{}}]}}"
            );
            authorization(&key, &spec)
        })
        .join("---\n")
}

/// How far a pod has come, as its manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is bound to its node, which has not reported its addresses yet.
    Pending,
    /// It has its addresses.
    Running,
    /// It is being deleted.
    Terminating,
}

/// A service account.
#[must_use]
pub fn service_account(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    )
}

/// A pod, with its service account if that is its own; one that several have is a manifest of its
/// own.
pub(crate) fn pod(spec: &PodSpec, addresses: &[IpAddr], node: &str, stage: Stage) -> String {
    let ports: String = spec
        .ports
        .iter()
        .map(|(name, port)| {
            format!(
                "        - name: {name}\n          containerPort: {port}\n          protocol: TCP\n"
            )
        })
        .collect();
    let ports = if ports.is_empty() {
        ports
    } else {
        format!("      ports:\n{ports}")
    };
    let probes = spec.probes.iter().map(|field| format!("      {field}\n"));
    let ports = ports + &probes.collect::<String>();
    let addresses: String = addresses
        .iter()
        .map(|address| format!("    - ip: \"{address}\"\n"))
        .collect();
    let status = match stage {
        Stage::Pending => "  phase: Pending\n".to_owned(),
        Stage::Running | Stage::Terminating => {
            format!("  phase: Running\n  podIPs:\n{addresses}")
        }
    };
    let uid = match spec.uid.as_str() {
        "" => String::new(),
        uid => format!("  uid: {uid}\n"),
    };
    let labels: String = spec
        .labels
        .iter()
        .map(|(key, value)| format!("    {key}: \"{value}\"\n"))
        .collect();
    let deleted = match stage {
        Stage::Terminating => "  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n",
        Stage::Pending | Stage::Running => "",
    };
    let network = match spec.host_network {
        true => "  hostNetwork: true\n",
        false => "",
    };
    let own_account = match spec.service_account == spec.name {
        true => service_account(&spec.namespace, &spec.name) + "---\n",
        false => String::new(),
    };
    format!(
        "{own_account}\
         apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         labels:\n    app: {app}\n{labels}{uid}{deleted}\
         spec:\n{network}  nodeName: {node}\n  serviceAccountName: {account}\n  \
         containers:\n    - name: {name}\n      image: {name}\n{ports}\
         status:\n{status}",
        account = spec.service_account,
        app = spec.app,
        namespace = spec.namespace,
        name = spec.name,
    )
}

/// A service with a virtual address of each family, or with none.
pub(crate) fn service(spec: &ServiceSpec, addresses: &[IpAddr]) -> String {
    let addresses: String = match spec.headless {
        true => "    - None\n".to_owned(),
        false => addresses
            .iter()
            .map(|address| format!("    - \"{address}\"\n"))
            .collect(),
    };
    let ports: String = spec
        .ports
        .iter()
        .map(|(port, target)| {
            format!("    - name: p{port}\n      port: {port}\n      targetPort: {target}\n      protocol: TCP\n")
        })
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
         spec:\n  selector:\n    app: {app}\n  clusterIPs:\n{addresses}  ports:\n{ports}",
        name = spec.name,
        namespace = spec.namespace,
        app = spec.app,
    )
}

/// Puts a manifest in place at once: a reader sees the old one or the new one.
pub(crate) fn write(folder: &Path, name: &str, content: &str) -> Result<()> {
    let staged = folder.with_extension(format!("staged-{name}"));
    let path = folder.join(format!("{name}.yaml"));
    fs::write(&staged, content)
        .and_then(|()| fs::rename(&staged, &path))
        .with_context(|| format!("writing {}", path.display()))
}
