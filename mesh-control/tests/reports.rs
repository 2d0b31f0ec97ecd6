//! What nodes report: kept within bounds, and their endpoints' health put over the manifests.

mod support;

use std::time::{Duration, Instant};

use mesh_api::convert::Entry;
use mesh_api::node::node_service_client::NodeServiceClient;
use mesh_api::node::{NodeReport, PodReport};
use mesh_control::audit::Event;
use mesh_control::registry::{Directory, Registry};
use mesh_control::sources::manifests::load;
use mesh_core::model::{Health, Mesh};
use support::subscriber::{Subscriber, entry, names, subscribe};
use support::{Control, MANIFESTS, assert_refused};
use tonic::Code;

/// On node-b.
const WEB_POD: &str = "Kubernetes//v1/Pod/shop/web-1";

fn mesh(manifests: &str) -> Mesh {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mesh.yaml"), manifests).unwrap();
    let loaded = load(folder.path(), &"cluster.local".parse().unwrap());
    loaded.unwrap().mesh
}

fn registry(manifests: &str) -> Registry {
    Registry::new(Directory::new(mesh(manifests)))
}

fn pod(name: &str, unhealthy: bool) -> PodReport {
    PodReport {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        state: "enrolled".to_owned(),
        worker_pid: 7,
        unhealthy,
        health_detail: "GET /healthz: 503".to_owned(),
        ..Default::default()
    }
}

fn report(pods: &[PodReport]) -> NodeReport {
    NodeReport {
        version: "1.2.3".to_owned(),
        discovery_version: "abc".to_owned(),
        pods: pods.to_vec(),
        clock_ms: 0,
        unreadable_policies: vec![],
        ..NodeReport::default()
    }
}

fn health(registry: &Registry, uid: &str) -> Option<Health> {
    let served = registry.current();
    served.mesh().workload(uid).map(|workload| workload.health)
}

#[test]
fn a_node_speaks_for_its_own_pods_only() {
    let registry = registry(MANIFESTS);
    let mut served = registry.subscribe();
    let now = Instant::now();
    let foreign = report(&[pod("web-1", true)]);
    registry.report("node-a", &foreign, now).unwrap();
    assert_eq!(health(&registry, WEB_POD), Some(Health::Healthy));
    let unheard = report(&[pod("no-such-pod", true)]);
    registry.report("node-b", &unheard, now).unwrap();
    assert!(!served.has_changed().unwrap(), "nothing was served anew");
    for node in registry.status(now).nodes {
        let told: Vec<_> = node.pods.iter().filter(|p| p.report.is_some()).collect();
        assert!(told.is_empty(), "{told:?}");
    }

    let own = report(&[pod("web-1", true)]);
    registry.report("node-b", &own, now).unwrap();
    assert_eq!(health(&registry, WEB_POD), Some(Health::Unhealthy));
    assert!(served.has_changed().unwrap());
    served.mark_unchanged();
    registry.report("node-b", &own, now).unwrap();
    let foreign = report(&[pod("web-1", false)]);
    registry.report("node-a", &foreign, now).unwrap();
    assert!(
        !served.has_changed().unwrap(),
        "only news makes a new state"
    );
    assert_eq!(health(&registry, WEB_POD), Some(Health::Unhealthy));
}

#[test]
fn the_last_word_stays_until_the_pod_goes() {
    let registry = registry(MANIFESTS);
    let start = Instant::now();
    let own = report(&[pod("web-1", true)]);
    registry.report("node-b", &own, start).unwrap();
    let later = start + Duration::from_secs(30);
    let node = |name: &str| {
        let nodes = registry.status(later).nodes;
        nodes.into_iter().find(|node| node.name == name).unwrap()
    };
    let told = node("node-b").report.unwrap();
    assert_eq!((told.age_s, told.silent, told.behind), (30, true, true));
    assert_eq!(node("node-a").report, None, "has pods, has not reported");

    // Other manifests with the pod in them leave its health as it is.
    let sources = |text: &str| Directory::new(mesh(text));
    let other = MANIFESTS.replace("10.1.0.1}", "10.1.0.77}");
    registry.set_sources(&sources(&other), later);
    assert_eq!(health(&registry, WEB_POD), Some(Health::Unhealthy));
    // Gone and back: another pod of that name.
    let without = MANIFESTS.replace("name: web-1", "name: web-2");
    registry.set_sources(&sources(&without), later);
    assert_eq!(health(&registry, WEB_POD), None);
    registry.set_sources(&sources(MANIFESTS), later);
    assert_eq!(health(&registry, WEB_POD), Some(Health::Healthy));
    // On another node: what the first one said no longer counts.
    let own = report(&[pod("web-1", true)]);
    registry.report("node-b", &own, later).unwrap();
    let moved = MANIFESTS.replace("nodeName: node-b", "nodeName: node-c");
    registry.set_sources(&sources(&moved), later);
    assert_eq!(health(&registry, WEB_POD), Some(Health::Healthy));
}

#[test]
fn a_node_without_pods_is_forgotten_after_an_hour() {
    let registry = registry(MANIFESTS);
    let start = Instant::now();
    registry.report("spare", &report(&[]), start).unwrap();
    let known = |now: Instant| {
        registry.set_sources(&Directory::new(mesh(MANIFESTS)), now);
        let nodes = registry.status(now).nodes;
        nodes.iter().any(|node| node.name == "spare")
    };
    assert!(known(start + Duration::from_secs(3599)));
    assert!(!known(start + Duration::from_secs(3600)));
}

#[test]
fn what_a_node_says_is_cut_and_made_harmless() {
    let registry = registry(MANIFESTS);
    let now = Instant::now();
    let long = NodeReport {
        version: "v".repeat(1000),
        discovery_version: "d\u{1b}[2J\n".to_owned(),
        pods: vec![PodReport {
            reason: "r".repeat(1000),
            health_detail: "é".repeat(1000),
            worker_pid: -1,
            certificate_not_after_s: 0,
            ..pod("web-1", true)
        }],
        clock_ms: 0,
        unreadable_policies: vec![],
        ..NodeReport::default()
    };
    registry.report("node-b", &long, now).unwrap();
    let status = registry.status(now);
    let node = status.nodes.into_iter().find(|n| n.name == "node-b");
    let node = node.unwrap();
    let told = node.report.unwrap();
    assert_eq!(told.version.len(), 64);
    assert_eq!(told.discovery_version, "d[2J");
    let pod = node.pods[0].report.as_ref().unwrap();
    assert_eq!(pod.reason.len(), 256);
    assert_eq!(pod.health_detail.chars().count(), 256);
    assert_eq!((pod.worker_pid, pod.certificate_not_after_s), (None, None));
}

#[test]
fn a_node_is_heard_ten_times_a_second() {
    let registry = registry(MANIFESTS);
    let start = Instant::now();
    for _ in 0..10 {
        registry.report("node-a", &report(&[]), start).unwrap();
    }
    let late = start + Duration::from_millis(999);
    for first in [true, false] {
        let refused = registry.report("node-a", &report(&[]), late).unwrap_err();
        assert_eq!(refused.first, first, "recorded once a second");
    }
    registry.report("node-b", &report(&[]), late).unwrap();
    let next = start + Duration::from_secs(1);
    registry.report("node-a", &report(&[]), next).unwrap();
}

#[tokio::test]
async fn health_reaches_every_node_by_discovery() {
    let control = Control::start().await;
    let (a, b) = (control.node("node-a").await, control.node("node-b").await);
    let mut stream = Subscriber::open(&a, subscribe(&["*"])).await;
    let before = stream.next().await.unwrap();
    let (mut by_a, mut by_b) = (NodeServiceClient::new(a), NodeServiceClient::new(b));
    let unhealthy = report(&[pod("web-1", true)]);
    by_a.report(unhealthy.clone()).await.unwrap();
    assert_eq!(health(&control.registry, WEB_POD), Some(Health::Healthy));
    by_b.report(unhealthy).await.unwrap();
    let change = stream.next().await.unwrap();
    assert_eq!(names(&change), [WEB_POD]);
    let Entry::Workload(web) = entry(&change, WEB_POD) else {
        panic!("a workload")
    };
    assert_eq!(web.health, Health::Unhealthy);
    by_b.report(report(&[pod("web-1", false)])).await.unwrap();
    let back = stream.next().await.unwrap();
    assert_eq!(names(&back), [WEB_POD]);
    assert_eq!(back.system_version_info, before.system_version_info);
}

#[tokio::test]
async fn only_nodes_report() {
    let control = Control::start().await;
    let nobody = control.connect(None).await.unwrap();
    let refused = NodeServiceClient::new(nobody).report(report(&[])).await;
    assert_refused(refused, Code::Unauthenticated, "client certificate");
    let leaf = control.pki.leaf(support::CART, |_| ());
    let workload = control.connect(Some(&leaf)).await.unwrap();
    let refused = NodeServiceClient::new(workload).report(report(&[])).await;
    assert_refused(refused, Code::PermissionDenied, "not a node's");
    assert_eq!(control.audit.count(Event::CallerRefused), 2);
}
