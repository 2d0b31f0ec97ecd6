//! The kinds of objects that are followed.

use kube::api::DynamicObject;
use kube::discovery::ApiResource;
use mesh_api::kinds::{GROUP, OWN_KINDS, VERSION};
use serde_json::{Map, Value, json};

/// Where a pod in the API says which static pod it stands for.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    group: &'static str,
    version: &'static str,
    /// As in a manifest.
    pub(super) name: &'static str,
    plural: &'static str,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    name: &'static str,
    plural: &'static str,
) -> Kind {
    Kind {
        group,
        version,
        name,
        plural,
    }
}

const fn own(index: usize) -> Kind {
    kind(
        GROUP,
        VERSION,
        OWN_KINDS[index].name,
        OWN_KINDS[index].plural,
    )
}

/// All that are followed.
pub(super) const KINDS: [Kind; 11] = [
    kind("", "v1", "Namespace", "namespaces"),
    kind("", "v1", "ServiceAccount", "serviceaccounts"),
    kind("", "v1", "Pod", "pods"),
    kind("", "v1", "Service", "services"),
    kind("", "v1", "Node", "nodes"),
    kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    own(0),
    own(1),
    own(2),
    own(3),
    own(4),
];

impl Kind {
    /// Whether it is one of the mesh's own, which the cluster has only once they are installed.
    pub(super) fn is_own(self) -> bool {
        self.group == GROUP
    }

    /// As a role names it.
    pub(super) fn group_and_plural(self) -> (&'static str, &'static str) {
        (self.group, self.plural)
    }

    /// Where the API server has it.
    pub(super) fn resource(self) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version: self.api_version(),
            kind: self.name.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// `<plural>.<group>`, as a CustomResourceDefinition is named.
    pub(super) fn definition(self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    fn api_version(self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The object as a manifest would say it: the metadata of a manifest, and no more of the rest than the
    /// mesh reads, so that what changes elsewhere is no news.
    pub(super) fn manifest(self, object: DynamicObject) -> Value {
        let DynamicObject { metadata, data, .. } = object;
        let mut manifest = data;
        if !manifest.is_object() {
            manifest = json!({});
        }
        manifest["apiVersion"] = self.api_version().into();
        manifest["kind"] = self.name.into();
        let mut kept = json!({"name": metadata.name});
        if let Some(namespace) = metadata.namespace {
            kept["namespace"] = namespace.into();
        }
        if let Some(labels) = metadata.labels {
            kept["labels"] = json!(labels);
        }
        if let Some(fields) = manifest.as_object_mut() {
            match self.name {
                "Namespace" | "ServiceAccount" | "Node" => {
                    fields.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind"));
                }
                "Pod" => trim_pod(fields),
                "EndpointSlice" => {}
                _ => {
                    fields.remove("status");
                }
            }
        }
        if self.name == "Pod" {
            kept["uid"] = json!(metadata.uid.unwrap_or_default());
            let annotations = metadata.annotations.unwrap_or_default();
            if let Some(mirrored) = annotations.get(MIRROR) {
                kept["annotations"] = json!({MIRROR: mirrored});
            }
            for (field, time) in [
                ("creationTimestamp", metadata.creation_timestamp),
                ("deletionTimestamp", metadata.deletion_timestamp),
            ] {
                if let Some(time) = time {
                    kept[field] = json!(time);
                }
            }
        }
        manifest["metadata"] = kept;
        manifest
    }
}

fn trim_pod(pod: &mut Map<String, Value>) {
    let mut keep = |part: &str, names: &[&str]| {
        if let Some(part) = pod.get_mut(part) {
            trim(part, names);
        }
    };
    keep(
        "spec",
        &[
            "nodeName",
            "serviceAccountName",
            "hostNetwork",
            "containers",
            "initContainers",
        ],
    );
    keep("status", &["phase", "podIP", "podIPs"]);
    for list in ["containers", "initContainers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list));
        let containers = containers.and_then(Value::as_array_mut);
        containers.into_iter().flatten().for_each(trim_container);
    }
}

/// Of a container its ports, and where kubelet calls it. What kubelet says there may be secret.
fn trim_container(container: &mut Value) {
    const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
    const HOOKS: [&str; 2] = ["postStart", "preStop"];
    trim(container, &[&["ports", "lifecycle"], &PROBES[..]].concat());
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        trim(lifecycle, &HOOKS);
        trim_calls(lifecycle, &HOOKS);
    }
    trim_calls(container, &PROBES);
}

/// Trims kubelet's calls to where they go.
fn trim_calls(of: &mut Value, calls: &[&str]) {
    const TARGETS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
    for call in calls {
        let Some(call) = of.get_mut(call) else {
            continue;
        };
        trim(call, &TARGETS);
        for target in TARGETS {
            if let Some(target) = call.get_mut(target) {
                trim(target, &["host", "port"]);
            }
        }
    }
}

fn trim(value: &mut Value, names: &[&str]) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| names.contains(&name.as_str()));
    }
}
