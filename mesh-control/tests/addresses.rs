//! Addresses that nodes see in their pods before the sources say any: served until the sources do, and
//! never those of somebody else.

use std::net::IpAddr;
use std::time::Instant;

use mesh_api::node::{NodeReport, PodReport};
use mesh_control::registry::{Directory, Registry, ResourceType};
use mesh_control::sources::manifests::load;

const MESH: &str = "\
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/enroll: 'true'}}
---
kind: Pod
metadata: {name: a, namespace: shop, uid: uid-a}
spec: {nodeName: node-a}
status: {podIP: 10.1.0.1}
---
kind: Pod
metadata: {name: b, namespace: shop, uid: uid-b}
spec: {nodeName: node-a}
---
kind: Pod
metadata:
  name: c
  namespace: shop
  uid: uid-c
  annotations: {kubernetes.io/config.mirror: static-c, other: null}
spec: {nodeName: node-b}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.2.0.1, ports: [{port: 80}]}
";

fn sources(text: &str) -> Directory {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mesh.yaml"), text).unwrap();
    let loaded = load(folder.path(), &"cluster.local".parse().unwrap());
    Directory::new(loaded.unwrap().mesh)
}

fn uid(name: &str) -> String {
    format!("Kubernetes//v1/Pod/shop/{name}")
}

fn served(registry: &Registry, name: &str) -> Vec<String> {
    let view = registry.current();
    let workload = view.mesh().workload(&uid(name)).unwrap().clone();
    workload.addresses.iter().map(ToString::to_string).collect()
}

/// What an address leads to.
fn owner(registry: &Registry, address: &str) -> Option<String> {
    let view = registry.current();
    let found = view.find(ResourceType::Address, &format!("/{address}"));
    found.map(|resource| resource.name.to_string())
}

fn report(registry: &Registry, node: &str, pods: &[(&str, &[&str])]) {
    let bytes = |address: &&str| match address.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let pods = pods.iter().map(|(name, addresses)| PodReport {
        namespace: "shop".to_owned(),
        name: (*name).to_owned(),
        addresses: addresses.iter().map(bytes).collect(),
        ..PodReport::default()
    });
    let report = NodeReport {
        pods: pods.collect(),
        ..NodeReport::default()
    };
    registry.report(node, &report, Instant::now()).unwrap();
}

#[test]
fn a_nodes_word_holds_until_the_source_says_an_address() {
    let registry = Registry::new(sources(MESH));
    let before = registry.current().version();
    report(&registry, "node-a", &[("b", &["10.1.0.2", "fd00::2"])]);
    assert_eq!(served(&registry, "b"), ["10.1.0.2", "fd00::2"]);
    assert_eq!(owner(&registry, "10.1.0.2"), Some(uid("b")));
    // The sources once more, without news.
    registry.set_sources(&sources(MESH), Instant::now());
    assert_eq!(served(&registry, "b"), ["10.1.0.2", "fd00::2"]);
    // What the source says counts, whatever the node goes on saying.
    let told = MESH.replace(
        "uid: uid-b}\nspec: {nodeName: node-a}",
        "uid: uid-b}\nspec: {nodeName: node-a}\nstatus: {podIP: 10.1.0.9}",
    );
    assert_ne!(told, MESH);
    registry.set_sources(&sources(&told), Instant::now());
    report(&registry, "node-a", &[("b", &["10.1.0.2"])]);
    assert_eq!(served(&registry, "b"), ["10.1.0.9"]);
    assert_eq!(owner(&registry, "10.1.0.2"), None);
    // It says none again; the node has taken its word back.
    registry.set_sources(&sources(MESH), Instant::now());
    assert_eq!(served(&registry, "b"), ["10.1.0.2"]);
    report(&registry, "node-a", &[("b", &[])]);
    assert!(served(&registry, "b").is_empty());
    assert_eq!(registry.current().version(), before);
}

#[test]
fn an_address_of_somebody_else_is_refused() {
    let registry = Registry::new(sources(MESH));
    // Another node's pod; an address of the sources; a service's; what no pod can have.
    report(&registry, "node-b", &[("b", &["10.1.0.2"])]);
    for taken in [
        "10.1.0.1",
        "10.2.0.1",
        "127.0.0.1",
        "169.254.1.1",
        "fe80::1",
    ] {
        report(&registry, "node-a", &[("b", &[taken])]);
        assert!(served(&registry, "b").is_empty(), "{taken}");
    }
    assert_eq!(owner(&registry, "10.1.0.1"), Some(uid("a")));
    // The first who has it keeps it, until it gives it up.
    report(&registry, "node-a", &[("b", &["10.1.0.2"])]);
    report(&registry, "node-b", &[("c", &["10.1.0.2"])]);
    assert_eq!(owner(&registry, "10.1.0.2"), Some(uid("b")));
    assert!(served(&registry, "c").is_empty());
    report(&registry, "node-a", &[]);
    assert_eq!(served(&registry, "c"), ["10.1.0.2"]);
    // The source's word takes it away at once, and leaves it when the pod goes.
    let pod = "---\nkind: Pod\nmetadata: {name: d, namespace: shop}\nspec: {nodeName: node-a}\nstatus: {podIP: 10.1.0.2}\n";
    registry.set_sources(&sources(&(MESH.to_owned() + pod)), Instant::now());
    assert!(served(&registry, "c").is_empty());
    assert_eq!(owner(&registry, "10.1.0.2"), Some(uid("d")));
    registry.set_sources(&sources(MESH), Instant::now());
    assert_eq!(owner(&registry, "10.1.0.2"), Some(uid("c")));
}

#[test]
fn one_report_gives_an_address_once() {
    let registry = Registry::new(sources(&MESH.replace("node-b", "node-a")));
    report(
        &registry,
        "node-a",
        &[("b", &["10.1.0.2"]), ("c", &["10.1.0.2"])],
    );
    assert_eq!(
        served(&registry, "b").len() + served(&registry, "c").len(),
        1
    );
}

#[test]
fn pods_have_the_uid_that_kubelet_has() {
    let directory = sources(MESH);
    let of = |name: &str| {
        directory
            .mesh()
            .workload(&uid(name))
            .unwrap()
            .pod_uid
            .clone()
    };
    assert_eq!((of("a").as_str(), of("c").as_str()), ("uid-a", "static-c"));
}
