//! What `cargo xtask k8s-test` puts into a cluster: objects that Kubernetes knows to their last field, and
//! that mean to control what the cases count on.

#[path = "support/admission.rs"]
mod admission;
#[path = "support/typed.rs"]
mod typed;

use std::fs;
use std::path::{Path, PathBuf};

use mesh_control::sources::manifests::parse;
use mesh_core::model::Enrolment;
use serde_json::{Value, json};
use typed::{said, through_its_type};

const FOLDER: &str = "xtask/src/k8s_test/objects";
const FILES: [&str; 3] = ["shop.yaml", "outside.yaml", "other-too.yaml"];

/// As the runner fills them in; names of namespaces are lower case in a cluster.
fn filled(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(FOLDER);
    let text = fs::read_to_string(path.join(file)).unwrap();
    let text = text.replace("OUTSIDE", "shop-out").replace("SHOP", "shop");
    text.replace("RUN", "1").replace("APP-IMAGE", "agnhost")
}

#[test]
fn every_object_is_one_that_kubernetes_or_the_mesh_knows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(FOLDER);
    assert_eq!(fs::read_dir(folder).unwrap().count(), FILES.len());
    for file in FILES {
        for object in filled(file).split("\n---\n").map(admission::from_yaml) {
            let name = format!("{file}: {} {}", object["kind"], object["metadata"]["name"]);
            if object["apiVersion"] == "nodemesh.dev/v1alpha1" {
                assert_eq!(admission::mistakes(&object), [""; 0], "{name}");
                continue;
            }
            let typed = through_its_type(&object).expect("a type of Kubernetes");
            assert_eq!(said(&typed), said(&object), "{name}");
        }
    }
}

/// The pods that a controller would make, with the service's name for a selector.
fn pods(text: &str, subnet: usize) -> Vec<Value> {
    let objects = text.split("\n---\n").map(admission::from_yaml);
    let templates = objects.filter(|object| !object["spec"]["template"].is_null());
    let pod = |(n, object): (usize, Value)| {
        let template = &object["spec"]["template"];
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"],
            "spec": template["spec"], "status": {"podIPs": [{"ip": format!("10.1.{subnet}.{n}")}]},
        });
        pod["metadata"]["name"] = object["metadata"]["name"].clone();
        pod["metadata"]["namespace"] = object["metadata"]["namespace"].clone();
        pod["spec"]["nodeName"] = "node-a".into();
        pod
    };
    templates.enumerate().map(pod).collect()
}

/// Those of a file that control follows.
fn followed(text: &str, subnet: usize) -> Vec<Value> {
    let known = [
        "Namespace",
        "ServiceAccount",
        "Service",
        "AuthorizationPolicy",
    ];
    let mut objects: Vec<Value> = text.split("\n---\n").map(admission::from_yaml).collect();
    objects.retain(|object| known.contains(&object["kind"].as_str().unwrap()));
    for object in &mut objects {
        // A Service has an address once it is in a cluster.
        if object["kind"] == "Service" && object["spec"]["clusterIP"].is_null() {
            object["spec"]["clusterIPs"] = json!(["10.96.0.1"]);
        }
    }
    objects.extend(pods(text, subnet));
    objects
}

#[test]
fn control_reads_what_the_cases_count_on() {
    let manifests: Vec<(PathBuf, String)> = FILES
        .iter()
        .enumerate()
        .map(|(subnet, file)| {
            let objects = followed(&filled(file), subnet);
            let texts: Vec<String> = objects.iter().map(Value::to_string).collect();
            (file.into(), texts.join("\n---\n"))
        })
        .collect();
    let parsed = parse(&manifests, &"cluster.local".parse().unwrap());
    let parsed = parsed.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    let enrolled = |namespace: &str| -> Vec<bool> {
        let pods = parsed.mesh.workloads();
        let of = pods.filter(|pod| pod.identity.namespace() == namespace);
        of.map(|pod| pod.enrolment == Enrolment::Enforce).collect()
    };
    assert_eq!(enrolled("shop"), [true; 5]);
    assert_eq!(enrolled("shop-out"), [false; 2]);
    assert_eq!(parsed.mesh.authorizations().count(), 3);
}
