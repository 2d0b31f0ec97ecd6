//! Objects as Kubernetes' own types have them: to the last field.
#![allow(
    dead_code,
    reason = "a module of several test binaries, each of which uses its part"
)]

use std::fs;
use std::path::Path;

use k8s_openapi::api::{admissionregistration, apps, batch, core, networking, policy, rbac};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use serde_json::Value;

/// The objects of a file, whose path is below the workspace.
pub(crate) fn objects(path: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).expect("YAML"))
        .filter(|object: &Value| !object.is_null())
        .collect()
}

/// The object as Kubernetes' own type has it, written again. A field that the type doesn't have is lost on
/// the way, and a value of another type is no value.
fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: Result<T, _> = serde_json::from_value(object.clone());
    let typed = typed.unwrap_or_else(|e| panic!("{}: {e}", object["metadata"]["name"]));
    serde_json::to_value(typed).expect("an object")
}

/// As [`through`], by what it says it is; `None` where its type is not at hand.
pub(crate) fn through_its_type(object: &Value) -> Option<Value> {
    let version = object["apiVersion"].as_str().unwrap();
    Some(match (version, object["kind"].as_str().unwrap()) {
        ("v1", "Namespace") => through::<core::v1::Namespace>(object),
        ("v1", "ServiceAccount") => through::<core::v1::ServiceAccount>(object),
        ("v1", "ConfigMap") => through::<core::v1::ConfigMap>(object),
        ("v1", "Pod") => through::<core::v1::Pod>(object),
        ("v1", "Service") => through::<core::v1::Service>(object),
        ("apps/v1", "Deployment") => through::<apps::v1::Deployment>(object),
        ("apps/v1", "StatefulSet") => through::<apps::v1::StatefulSet>(object),
        ("batch/v1", "Job") => through::<batch::v1::Job>(object),
        ("apps/v1", "DaemonSet") => through::<apps::v1::DaemonSet>(object),
        ("policy/v1", "PodDisruptionBudget") => through::<policy::v1::PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            through::<networking::v1::NetworkPolicy>(object)
        }
        ("rbac.authorization.k8s.io/v1", "Role") => through::<rbac::v1::Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => through::<rbac::v1::RoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<rbac::v1::ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            through::<rbac::v1::ClusterRoleBinding>(object)
        }
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            through::<apiextensions::v1::CustomResourceDefinition>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            through::<admissionregistration::v1::ValidatingAdmissionPolicy>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            through::<admissionregistration::v1::ValidatingAdmissionPolicyBinding>(object)
        }
        // cert-manager's types are not at hand.
        ("cert-manager.io/v1", "Certificate") => return None,
        (version, kind) => panic!("{version} {kind} is nothing that is to be installed"),
    })
}

/// Without what says nothing: types leave empty lists and maps out, or in. A whole number is the same
/// where the type has a fraction.
pub(crate) fn said(value: &Value) -> Value {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match value {
        Value::Array(items) => items.iter().map(said).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), said(value)))
            .filter(|(_, value)| !empty(value))
            .collect(),
        Value::Number(number) => number.as_f64().into(),
        other => other.clone(),
    }
}
