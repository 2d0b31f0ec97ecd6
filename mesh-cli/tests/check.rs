//! `meshctl check`, against a double of an API server.

#[path = "../../mesh-control/tests/support/api.rs"]
mod api;
#[path = "support/cluster.rs"]
mod cluster;

use std::process::Output;

use cluster::{Cluster, done, failed};
use mesh_control::sources::kubernetes::definitions::definitions;
use serde_json::{Value, json};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn installed(kind: &str, name: &str, version: &str, rest: Value) -> Value {
    let mut object = rest;
    object["kind"] = kind.into();
    object["apiVersion"] = "apps/v1".into();
    object["metadata"] = json!({"name": name, "namespace": "nodemesh", "labels": {
        "app.kubernetes.io/part-of": "nodemesh", "app.kubernetes.io/version": version}});
    object
}

fn api_server(arguments: &[&str]) -> Value {
    json!({
        "kind": "Pod",
        "metadata": {"name": "kube-apiserver-a", "namespace": "kube-system",
            "labels": {"component": "kube-apiserver"}},
        "spec": {"containers": [{"command": arguments}]},
    })
}

fn check(cluster: &Cluster) -> Output {
    cluster.meshctl("check")
}

#[test]
fn what_is_there_is_good_and_what_cant_be_seen_is_unknown() {
    let cluster = Cluster::start();
    for object in definitions() {
        if object["kind"] == "CustomResourceDefinition" {
            cluster.api.put(object);
        }
    }
    let control = json!({"spec": {"replicas": 2}, "status": {"readyReplicas": 2}});
    cluster.api.put(installed(
        "Deployment",
        "nodemesh-control",
        VERSION,
        control,
    ));
    let agents = json!({"status": {"desiredNumberScheduled": 3, "numberReady": 3, "updatedNumberScheduled": 3}});
    cluster
        .api
        .put(installed("DaemonSet", "nodemesh-agent", VERSION, agents));
    let said = done(&check(&cluster));
    for line in [
        "good     API server: v1.33.0",
        "good     definitions: revocations.nodemesh.dev of version",
        "unknown  encryption at rest: no pods of kube-apiserver can be read",
        "good     mesh-control: nodemesh/nodemesh-control: 2 of 2 replicas are ready",
        "good     mesh-agent: nodemesh/nodemesh-agent: ready on 3 of 3 nodes, up to date on 3",
        "good     objects: 0 authorizationpolicies",
        "unknown  signer: not asked",
    ] {
        assert!(said.contains(line), "{line}:\n{said}");
    }
    cluster.api.put(api_server(&[
        "kube-apiserver",
        "--encryption-provider-config=/x",
    ]));
    let said = done(&check(&cluster));
    assert!(
        said.contains("unknown  encryption at rest: kube-apiserver-a has an --encr"),
        "{said}"
    );
}

#[test]
fn what_is_wrong_is_named() {
    let cluster = Cluster::start();
    let mut old = definitions().remove(0);
    old["metadata"]["labels"]["app.kubernetes.io/version"] = "0.0.9".into();
    old["status"]["storedVersions"] = json!(["v1alpha0", "v1alpha1"]);
    cluster.api.put(old);
    cluster.api.put(api_server(&["kube-apiserver"]));
    let control = json!({"spec": {"replicas": 1}, "status": {"readyReplicas": 1}});
    cluster.api.put(installed(
        "Deployment",
        "nodemesh-control",
        "0.0.9",
        control,
    ));
    cluster.api.put(json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": {},
        "status": {"conditions": [{"type": "InForce", "status": "False", "message": "in force on 0 of 2 nodes"}]},
    }));
    let output = check(&cluster);
    failed(&output);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in [
        "BAD      definitions: authorizationpolicies.nodemesh.dev is of version \"0.0.9\"",
        "BAD      definitions: authorizationpolicies.nodemesh.dev has objects stored in",
        "BAD      definitions: revocations.nodemesh.dev is not installed",
        "BAD      encryption at rest: kube-apiserver-a runs without",
        "BAD      mesh-control: nodemesh/nodemesh-control: 1 of 1 replicas are ready; with one,",
        "BAD      mesh-control: nodemesh/nodemesh-control is of version \"0.0.9\"",
        "BAD      objects: AuthorizationPolicy shop/p: not InForce: in force on 0 of 2 nodes",
    ] {
        assert!(said.contains(line), "{line}:\n{said}");
    }
}
