//! The ports that pods declare for kubelet's probes and hooks, from a folder and from the Kubernetes
//! API.

#[path = "support/api.rs"]
mod api;
#[path = "support/cluster.rs"]
mod cluster;

use std::collections::BTreeSet;

use api::Api;
use cluster::{following, trust_domain, until, with_uids};
use mesh_control::registry::Directory;
use mesh_control::sources::manifests::parse;

/// A pod with every kind of probe, among what is none of the pod's.
const MESH: &str = r#"
kind: Namespace
apiVersion: v1
metadata: {name: shop, labels: {nodemesh.dev/enroll: "true"}}
---
kind: Pod
apiVersion: v1
metadata: {name: web, namespace: shop}
spec:
  nodeName: node-a
  initContainers:
  - name: once
    image: once
  - name: proxy
    image: proxy
    restartPolicy: Always
    ports: [{name: http, containerPort: 9000}]
    startupProbe: {httpGet: {path: /started, port: http}}
  containers:
  - name: web
    image: web
    ports:
    - {name: http, containerPort: 8080}
    - {name: metrics, containerPort: 9100}
    livenessProbe:
      httpGet: {path: /live, port: http, scheme: HTTPS, httpHeaders: [{name: a, value: b}]}
      periodSeconds: 3
    readinessProbe: {tcpSocket: {port: 8081}}
    startupProbe: {grpc: {port: 8082, service: health}}
    lifecycle:
      postStart: {httpGet: {path: /hook, port: 8083, host: 10.1.0.1}}
      preStop: {httpGet: {path: /hook, port: 8084, host: "fd00:1::1"}}
  - name: helper
    image: helper
    ports: [{name: side, containerPort: 7000}]
    livenessProbe: {exec: {command: ["true"]}}
    readinessProbe: {httpGet: {port: 8090, host: 127.0.0.1}}
    startupProbe: {tcpSocket: {port: 8091, host: elsewhere.example}}
    lifecycle: {postStart: {tcpSocket: {port: 8092}}, preStop: {exec: {command: ["true"]}}}
  - name: unnamed
    image: unnamed
    readinessProbe: {tcpSocket: {port: http}}
status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00:1::1"}]}
---
kind: Pod
apiVersion: v1
metadata: {name: plain, namespace: shop}
spec: {nodeName: node-a, containers: [{name: plain, ports: [{containerPort: 80}]}]}
status: {podIPs: [{ip: 10.1.0.2}]}
"#;

fn ports(directory: &Directory, pod: &str) -> BTreeSet<u16> {
    let uid = format!("Kubernetes//v1/Pod/shop/{pod}");
    directory.mesh().workload(&uid).unwrap().probe_ports.clone()
}

#[test]
fn a_pods_probe_ports_are_those_that_kubelet_calls_at_the_pod() {
    let files = [("mesh.yaml".into(), MESH.to_owned())];
    let mesh = Directory::new(parse(&files, &trust_domain()).unwrap().mesh);
    let expected = [8080, 8081, 8082, 8083, 8084, 9000];
    assert_eq!(ports(&mesh, "web"), expected.into());
    assert_eq!(ports(&mesh, "plain"), BTreeSet::new());
}

#[tokio::test]
async fn the_api_says_the_same_and_its_changes_are_followed() {
    let api = Api::start().await;
    api.apply(MESH);
    let registry = following(&api).await;
    let files = [("mesh.yaml".into(), MESH.to_owned())];
    let standalone = with_uids(parse(&files, &trust_domain()).unwrap().mesh);
    assert_eq!(registry.current().version(), standalone.version());
    assert_eq!(ports(&registry.current(), "web").len(), 6);
    let changed = MESH.replace("tcpSocket: {port: 8081}", "tcpSocket: {port: 8181}");
    api.apply(&changed);
    until(&registry, "the new port", |mesh| {
        let ports = ports(mesh, "web");
        ports.contains(&8181) && !ports.contains(&8081)
    })
    .await;
}
