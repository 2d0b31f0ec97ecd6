//! The manifests that the control component reads: the lab's plan as Kubernetes-style YAML.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::plan::ServiceSpec;
use crate::pod::Pod;

/// Label that enrols a namespace.
pub const ENROLL_LABEL: &str = "nodemesh.dev/enroll";

pub(crate) fn namespace(name: &str, enrolled: bool) -> String {
    let labels = if enrolled {
        format!("  labels:\n    {ENROLL_LABEL}: \"true\"\n")
    } else {
        String::new()
    };
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{labels}")
}

/// A pod and its service account.
pub(crate) fn pod(pod: &Pod, node: &str) -> String {
    let spec = &pod.spec;
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
    let addresses: String = pod
        .addresses()
        .iter()
        .map(|address| format!("    - ip: \"{address}\"\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {account}\n  namespace: {namespace}\n\
         ---\n\
         apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         labels:\n    app: {app}\n\
         spec:\n  nodeName: {node}\n  serviceAccountName: {account}\n  \
         containers:\n    - name: {name}\n      image: {name}\n{ports}\
         status:\n  phase: Running\n  podIPs:\n{addresses}",
        account = spec.service_account,
        app = spec.app,
        namespace = spec.namespace,
        name = spec.name,
    )
}

/// A service with a virtual address of each family.
pub(crate) fn service(spec: &ServiceSpec, addresses: &[std::net::IpAddr]) -> String {
    let addresses: String = addresses
        .iter()
        .map(|address| format!("    - \"{address}\"\n"))
        .collect();
    let ports: String = spec
        .ports
        .iter()
        .map(|(port, target)| {
            format!("    - name: p{port}\n      port: {port}\n      targetPort: {target}\n      protocol: TCP\n")
        })
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
         spec:\n  selector:\n    app: {name}\n  clusterIPs:\n{addresses}  ports:\n{ports}",
        name = spec.name,
        namespace = spec.namespace,
    )
}

/// Puts a manifest in place at once: a reader sees the old one or the new one.
pub(crate) fn write(folder: &Path, name: &str, content: &str) -> Result<()> {
    let staged = folder.with_extension("staged");
    let path = folder.join(format!("{name}.yaml"));
    fs::write(&staged, content)
        .and_then(|()| fs::rename(&staged, &path))
        .with_context(|| format!("writing {}", path.display()))
}
