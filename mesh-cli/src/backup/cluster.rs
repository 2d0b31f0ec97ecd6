//! The mesh's objects in a cluster: its own kinds, and what namespaces say of it by labels.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use mesh_api::kinds::{GROUP, OWN_KINDS, OwnKind, VERSION};
use serde_json::{Value, json};

use super::Plan;
use crate::cluster::{list, namespace_api};

/// What the labels begin with by which namespaces say how their pods are in the mesh.
const LABELS: &str = "nodemesh.dev/";
/// What `kubectl apply` keeps for itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    /// Labels of the mesh's, by namespace.
    pub(super) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// By what names them.
    pub(super) objects: BTreeMap<String, Value>,
}

/// Kind, namespace and name, as they are printed.
fn label(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let (kind, namespace, name) = (
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"]),
    );
    format!("{kind} {namespace}/{name}")
}

fn resource(kind: OwnKind) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: kind.name.to_owned(),
        plural: kind.plural.to_owned(),
    }
}

impl Saved {
    /// Of a backup.
    pub(super) fn from_backup(
        namespaces: BTreeMap<String, BTreeMap<String, String>>,
        objects: Vec<Value>,
    ) -> Result<Self> {
        let version = format!("{GROUP}/{VERSION}");
        for object in &objects {
            let known = OWN_KINDS.iter().any(|kind| object["kind"] == kind.name);
            ensure!(
                known && object["apiVersion"] == version.as_str(),
                "{} in version {} is not known to this meshctl: nothing was changed",
                label(object),
                object["apiVersion"]
            );
        }
        let objects = objects.into_iter().map(|object| (label(&object), object));
        Ok(Self {
            namespaces,
            objects: objects.collect(),
        })
    }

    /// Of a cluster.
    pub(super) async fn read(client: &Client) -> Result<Self> {
        let mut saved = Self::default();
        let namespaces = list(&namespace_api(client), "").await;
        for namespace in namespaces.context("listing namespaces")? {
            let mut labels = namespace.metadata.labels.unwrap_or_default();
            labels.retain(|label, _| label.starts_with(LABELS));
            if !labels.is_empty() {
                let name = namespace.metadata.name.unwrap_or_default();
                saved.namespaces.insert(name, labels);
            }
        }
        for kind in OWN_KINDS {
            let api = Api::all_with(client.clone(), &resource(kind));
            let what = format!(
                "listing {} (are the mesh's definitions installed?)",
                kind.plural
            );
            for object in list(&api, "").await.context(what)? {
                let object = bare(kind, object);
                saved.objects.insert(label(&object), object);
            }
        }
        Ok(saved)
    }

    /// What it takes to have this there.
    pub(super) fn plan(&self, there: &Self) -> Plan {
        let mut plan = Plan::default();
        for (namespace, labels) in &self.namespaces {
            let now = there.namespaces.get(namespace);
            for (label, value) in labels {
                match now.and_then(|now| now.get(label)) {
                    Some(same) if same == value => plan.same += 1,
                    _ => plan
                        .change
                        .push(format!("label of namespace {namespace}: {label}={value}")),
                }
            }
        }
        for (namespace, labels) in &there.namespaces {
            let before = self.namespaces.get(namespace);
            let others = labels.iter();
            let others = others.filter(|(label, _)| before.is_none_or(|b| !b.contains_key(*label)));
            plan.left.extend(others.map(|(label, value)| {
                format!("namespace {namespace} has the label {label}={value} now and had not: left as it is")
            }));
        }
        for (label, object) in &self.objects {
            match there.objects.get(label) {
                None => plan.create.push(label.clone()),
                Some(same) if same == object => plan.same += 1,
                Some(_) => plan.change.push(label.clone()),
            }
        }
        let extra = there.objects.keys();
        let extra = extra.filter(|label| !self.objects.contains_key(*label));
        plan.extra.extend(extra.cloned());
        plan
    }

    /// Brings it about, in an order in which at no time more is allowed than before or after.
    pub(super) async fn restore(&self, client: &Client, there: &Self, prune: bool) -> Result<()> {
        for (namespace, labels) in &self.namespaces {
            let now = there.namespaces.get(namespace);
            if labels
                .iter()
                .any(|(label, value)| now.and_then(|now| now.get(label)) != Some(value))
            {
                give_labels(client, namespace, labels).await?;
            }
        }
        let extra = there.objects.iter();
        let extra: Vec<_> = extra
            .filter(|(label, _)| prune && !self.objects.contains_key(*label))
            .map(|(_, object)| object)
            .collect();
        for object in extra.iter().filter(|object| allows(object)) {
            delete(client, object).await?;
        }
        let changed = self.objects.iter();
        let changed: Vec<_> = changed
            .filter(|(label, object)| there.objects.get(*label) != Some(object))
            .map(|(_, object)| object)
            .collect();
        // What allows comes last, when all that denies is there.
        for last in [false, true] {
            for object in changed.iter().filter(|object| allows(object) == last) {
                put(client, object).await?;
            }
        }
        for object in extra.iter().filter(|object| !allows(object)) {
            delete(client, object).await?;
        }
        Ok(())
    }
}

/// Whether it can only make more possible.
fn allows(object: &Value) -> bool {
    object["spec"]["action"] == "Allow"
}

/// An object as its author wrote it.
fn bare(kind: OwnKind, object: DynamicObject) -> Value {
    let metadata = object.metadata;
    let mut kept = json!({"name": metadata.name, "namespace": metadata.namespace});
    if let Some(labels) = metadata.labels.filter(|labels| !labels.is_empty()) {
        kept["labels"] = json!(labels);
    }
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    if !annotations.is_empty() {
        kept["annotations"] = json!(annotations);
    }
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": kind.name,
        "metadata": kept,
        "spec": object.data["spec"],
    })
}

/// Where an object of a backup is, and its name.
fn api(client: &Client, object: &Value) -> Result<(Api<DynamicObject>, String)> {
    let kind = OWN_KINDS
        .into_iter()
        .find(|kind| object["kind"] == kind.name);
    let kind = kind.with_context(|| format!("{} is of no kind of the mesh's", label(object)))?;
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    let api = Api::namespaced_with(client.clone(), &text("namespace"), &resource(kind));
    Ok((api, text("name")))
}

async fn put(client: &Client, object: &Value) -> Result<()> {
    let (api, name) = api(client, object)?;
    let mut wanted: DynamicObject = serde_json::from_value(object.clone())?;
    let params = PostParams::default();
    let written = match api.get_opt(&name).await? {
        None => api.create(&params, &wanted).await,
        Some(there) => {
            // Not over what somebody else writes at the same time.
            wanted.metadata.resource_version = there.metadata.resource_version;
            api.replace(&name, &params, &wanted).await
        }
    };
    written.with_context(|| format!("writing {}", label(object)))?;
    Ok(())
}

async fn delete(client: &Client, object: &Value) -> Result<()> {
    let (api, name) = api(client, object)?;
    let deleted = api.delete(&name, &DeleteParams::default()).await;
    deleted.with_context(|| format!("deleting {}", label(object)))?;
    Ok(())
}

/// Gives a namespace its labels, and makes it if it isn't there.
async fn give_labels(
    client: &Client,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Result<()> {
    let api = namespace_api(client);
    let patch = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": namespace, "labels": labels},
    });
    let params = PatchParams::apply("meshctl").force();
    let written = api.patch(namespace, &params, &Patch::Apply(patch)).await;
    written.with_context(|| format!("labelling namespace {namespace}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_or_kind_is_refused() {
        let object = |version: &str, kind: &str| {
            let metadata = json!({"namespace": "shop", "name": "p"});
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": {}})
        };
        let read = |object| Saved::from_backup(BTreeMap::new(), vec![object]);
        assert!(read(object("nodemesh.dev/v1alpha1", "WorkerBudget")).is_ok());
        for (version, kind) in [
            ("nodemesh.dev/v1beta1", "WorkerBudget"),
            ("nodemesh.dev/v1alpha1", "Gateway"),
            ("v1", "Secret"),
        ] {
            let error = read(object(version, kind)).unwrap_err().to_string();
            let expected = format!("{kind} shop/p in version \"{version}\" is not known");
            assert!(error.contains(&expected), "{error}");
        }
    }
}
