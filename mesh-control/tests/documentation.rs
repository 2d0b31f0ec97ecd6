//! The examples in docs/POLICY.md are manifests that are taken without a word, from a folder and from a
//! cluster; docs/IDENTITY.md
//! lists every refusal.

#[path = "support/admission.rs"]
mod admission;
#[path = "support/api.rs"]
mod api;
#[path = "support/cluster.rs"]
mod cluster;

use std::fs;

use api::Api;

use mesh_api::kinds::OWN_KINDS;
use mesh_control::refusal::Refusal;
use mesh_control::sources::kubernetes::Follower;
use mesh_control::sources::manifests::load;
use mesh_core::budget::FIELDS;

/// What the examples speak of.
const BASE: &str = r#"
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/enroll: "true"}}
---
kind: ServiceAccount
metadata: {name: cart, namespace: shop}
---
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}}
spec: {nodeName: node-a, serviceAccountName: cart}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: node-a, serviceAccountName: web}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/POLICY.md");
    fs::read_to_string(path).unwrap()
}

/// The examples of docs/POLICY.md, each a stream of manifests.
fn examples() -> Vec<String> {
    let document = document();
    let blocks = document.split("```yaml\n").skip(1);
    let blocks = blocks.map(|block| block.split_once("```").expect("an end").0.to_owned());
    blocks.collect()
}

#[tokio::test]
async fn the_examples_of_the_policy_document_make_the_same_mesh_from_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let all = [&[BASE.to_owned()][..], &examples()].concat();
    let api = Api::start().await;
    for (number, example) in all.iter().enumerate() {
        fs::write(folder.path().join(format!("{number}.yaml")), example).unwrap();
        for document in example.split("\n---\n") {
            let object = admission::from_yaml(document);
            if object["apiVersion"] == "nodemesh.dev/v1alpha1" {
                assert_eq!(admission::mistakes(&object), [""; 0], "{document}");
            }
            api.put(object);
        }
    }
    for kind in OWN_KINDS {
        let named = all
            .iter()
            .any(|text| text.contains(&format!("kind: {}\n", kind.name)));
        assert!(named, "no example of {}", kind.name);
    }
    let loaded = load(folder.path(), &cluster::trust_domain()).unwrap();
    let settings = cluster::settings();
    let revocations = settings.revocations.subscribe();
    let (follower, registry) = Follower::start(&api.client(), settings).await.unwrap();
    assert_eq!(follower.mistakes(), []);
    let standalone = cluster::with_uids(loaded.mesh);
    assert_eq!(registry.current().version(), standalone.version());
    assert_eq!(*revocations.borrow(), loaded.revocations);
}

#[test]
fn the_examples_of_the_policy_document_are_sound() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.yaml"), BASE).unwrap();
    let (document, examples) = (document(), examples());
    for (number, example) in examples.iter().enumerate() {
        fs::write(
            folder.path().join(format!("example-{number}.yaml")),
            example,
        )
        .unwrap();
    }
    let loaded = load(folder.path(), &"cluster.local".parse().unwrap());
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.warnings, []);
    let mesh = loaded.mesh;
    assert_eq!(examples.len(), 8);
    let cart = mesh.workload("Kubernetes//v1/Pod/shop/cart-1").unwrap();
    assert_eq!(cart.budget.memory_max_mib, Some(256));
    for field in FIELDS {
        let default = match field.default {
            0 => "none".to_owned(),
            default => default.to_string(),
        };
        let row = format!(
            "| `{}` | {default} | {} to {} |",
            field.name, field.low, field.high
        );
        assert!(document.contains(&row), "no row {row}");
    }
    assert_eq!(mesh.authorizations().count(), 7);
    assert_eq!(mesh.authentications().count(), 2);
    let web = mesh.service("shop/web.shop.svc.cluster.local").unwrap();
    assert_eq!(web.traffic.checks.len(), 1);
}

#[test]
fn every_refusal_is_in_the_document_once() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/IDENTITY.md");
    let document = fs::read_to_string(path).unwrap();
    let (_, list) = document.split_once("## Why control refuses").unwrap();
    let rows = list.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: Vec<_> = rows.filter_map(|row| row.split_once("` |")).collect();
    let listed: Vec<_> = listed.into_iter().map(|(code, _)| code).collect();
    let codes: Vec<_> = Refusal::ALL.iter().map(|refusal| refusal.code()).collect();
    assert_eq!(listed, codes);
}

#[test]
fn the_definitions_in_deploy_are_those_of_this_version() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/definitions.yaml");
    let kept = fs::read_to_string(path).unwrap();
    let same = kept == mesh_control::sources::kubernetes::definitions::manifest();
    assert!(
        same,
        "run: mesh-control definitions > deploy/definitions.yaml"
    );
}
