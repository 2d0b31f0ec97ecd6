//! The Kubernetes API as the source, against a double of an API server.

#[path = "support/api.rs"]
mod api;
#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use api::Api;
use cluster::{
    PATIENCE, SCENARIO, follow_with, following, settings, trust_domain, until, with_uids,
};
use mesh_control::registry::Directory;
use mesh_control::sources::kubernetes::Follower;
use mesh_control::sources::manifests::parse;
use mesh_core::model::{Enrolment, Resolution};
use mesh_core::policy::Action;
use mesh_core::revocation::Revocations;
use serde_json::json;
use support::pki::Pki;
use support::process::{Running, sourceless_command, status, text};

fn has_pod(directory: &Directory, namespace: &str, name: &str) -> bool {
    let uid = format!("Kubernetes//v1/Pod/{namespace}/{name}");
    directory.mesh().workload(&uid).is_some()
}

fn denials(directory: &Directory) -> Vec<String> {
    let policies = directory.mesh().authorizations();
    let denials = policies.filter(|policy| policy.action == Action::Deny);
    denials.map(|policy| policy.key.to_string()).collect()
}

fn pod(name: &str, ip: &str) -> serde_json::Value {
    json!({
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "cart"}},
        "spec": {"nodeName": "node-a", "serviceAccountName": "cart"},
        "status": {"podIPs": [{"ip": ip}]},
    })
}

#[tokio::test]
async fn the_same_objects_make_the_same_mesh_in_both_modes() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let registry = following(&api).await;
    let standalone = parse(
        &[("scenario.yaml".into(), SCENARIO.to_owned())],
        &trust_domain(),
    );
    let standalone = with_uids(standalone.unwrap().mesh);
    assert_eq!(registry.current().version(), standalone.version());
    assert_eq!(registry.current().mesh().workloads().count(), 2);
    // Not of the mesh, and so not known to it.
    let host = registry
        .current()
        .mesh()
        .resolve("192.0.2.7".parse().unwrap(), 80);
    assert_eq!(host, Resolution::Unknown);
}

#[tokio::test]
async fn nothing_is_served_before_all_policies_are_known() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    api.refuse("AuthorizationPolicy", Some(404));
    let client = api.client();
    let start = tokio::spawn(async move { Follower::start(&client, settings()).await });
    // Asked again, in vain.
    while api.asked("AuthorizationPolicy", false) < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!start.is_finished());
    api.refuse("AuthorizationPolicy", None);
    let started = tokio::time::timeout(PATIENCE, start)
        .await
        .unwrap()
        .unwrap();
    let (_follower, registry) = started.unwrap();
    assert_eq!(denials(&registry.current()), ["shop/no-legacy"]);
}

#[tokio::test]
async fn ten_thousand_pods_come_in_pages() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    for i in 0..10_000_u32 {
        let [.., a, b] = i.to_be_bytes();
        api.put(pod(&format!("p{i}"), &format!("10.2.{a}.{b}")));
    }
    let registry = following(&api).await;
    assert_eq!(registry.current().mesh().workloads().count(), 10_002);
    let pages = api.asked("Pod", false);
    assert!(pages >= 20, "{pages} pages");
}

#[tokio::test]
async fn changes_are_followed_one_by_one() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let registry = following(&api).await;
    api.put(pod("cart-2", "10.1.0.9"));
    until(&registry, "a new pod", |d| has_pod(d, "shop", "cart-2")).await;
    api.delete("Pod", "shop", "cart-2");
    until(&registry, "its end", |d| !has_pod(d, "shop", "cart-2")).await;
    api.put(json!({"kind": "Namespace", "metadata": {"name": "shop"}}));
    until(&registry, "an enrolment taken back", |d| {
        d.mesh().workloads().all(|w| w.enrolment == Enrolment::None)
    })
    .await;
    let lists = api.asked("Pod", false);
    assert_eq!(lists, 1, "one list, then watches");
}

#[tokio::test]
async fn a_version_that_is_gone_is_listed_anew_without_a_gap() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let registry = following(&api).await;
    let without = Arc::new(AtomicUsize::new(0));
    let (mut served, counted) = (registry.subscribe(), without.clone());
    let looked_at = registry.clone();
    tokio::spawn(async move {
        while served.changed().await.is_ok() {
            if denials(&looked_at.current()) != ["shop/no-legacy"] {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let lists = api.asked("AuthorizationPolicy", false);
    // While nobody watches, the log of changes is cut and a pod comes.
    api.refuse("Pod", Some(503));
    api.cut();
    api.put(pod("cart-9", "10.1.0.9"));
    api.compact();
    api.refuse("Pod", None);
    until(&registry, "the pod", |d| has_pod(d, "shop", "cart-9")).await;
    while api.asked("AuthorizationPolicy", false) == lists {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What comes next is of a state after that list.
    api.delete("Pod", "shop", "cart-9");
    until(&registry, "its end", |d| !has_pod(d, "shop", "cart-9")).await;
    assert_eq!(denials(&registry.current()), ["shop/no-legacy"]);
    let without = without.load(Ordering::Relaxed);
    assert_eq!(without, 0, "a state without its denial was served");
}

#[tokio::test]
async fn the_last_good_state_stays_while_the_api_is_away() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let registry = following(&api).await;
    let before = registry.current().version();
    for status in [429, 500, 403] {
        for kind in ["Pod", "Namespace", "AuthorizationPolicy"] {
            api.refuse(kind, Some(status));
        }
        let asked = api.asked("Pod", true);
        api.cut();
        while api.asked("Pod", true) < asked + 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(registry.current().version(), before, "{status}");
    }
    api.delete("AuthorizationPolicy", "shop", "no-legacy");
    assert_eq!(registry.current().version(), before);
    for kind in ["Pod", "Namespace", "AuthorizationPolicy"] {
        api.refuse(kind, None);
    }
    until(&registry, "what changed meanwhile", |d| {
        denials(d).is_empty()
    })
    .await;
    let lists = ["Pod", "Namespace", "AuthorizationPolicy"].map(|kind| api.asked(kind, false));
    assert_eq!(
        lists,
        [1, 1, 1],
        "watches go on, and nothing is listed anew"
    );
}

#[tokio::test]
async fn an_unreadable_policy_opens_nothing() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let policy = |name: &str, spec: serde_json::Value| {
        json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "shop", "generation": 2,
                "managedFields": [{"manager": "kubectl"}]},
            "spec": spec,
            "status": {"conditions": []},
        })
    };
    let rules = json!([{"peers": [{"serviceAccount": "web"}]}]);
    let wrong = json!({"direction": "Inbound", "action": "Deny", "rules": rules});
    api.put(policy("wrong", wrong));
    let allow = json!({"direction": "Inbound", "action": "Allow", "rules": []});
    api.put(policy("allows", allow));
    let registry = following(&api).await;
    // Without an earlier version it denies all that it could deny; one that allows, nothing more.
    let expected = ["shop/no-legacy", "shop/wrong.unreadable-inbound"];
    assert_eq!(denials(&registry.current()), expected);
    // The last version that can be read stays.
    let before = registry.current().version();
    api.put(policy(
        "no-legacy",
        json!({"direction": "Inbound", "action": "Refuse", "rules": [{}]}),
    ));
    api.put(pod("cart-2", "10.1.0.9"));
    until(&registry, "a pod", |d| has_pod(d, "shop", "cart-2")).await;
    assert_eq!(denials(&registry.current()), expected);
    api.delete("Pod", "shop", "cart-2");
    until(&registry, "the pod's end", |d| d.version() == before).await;
    // With the objects their stand-ins go.
    api.delete("AuthorizationPolicy", "shop", "wrong");
    api.delete("AuthorizationPolicy", "shop", "no-legacy");
    until(&registry, "no denial", |d| denials(d).is_empty()).await;
}

#[tokio::test]
async fn revocations_of_the_meshs_own_namespace_are_in_force() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let revocation = |namespace: &str, name: &str, spec: serde_json::Value| {
        json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "Revocation",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec,
        })
    };
    api.put(revocation(
        "nodemesh-system",
        "node",
        json!({"nodes": ["node-a"]}),
    ));
    // A tenant's own is no reason to cut others off.
    api.put(revocation("shop", "other", json!({"nodes": ["node-b"]})));
    // Of one that nobody checked when it was written, what can be read holds.
    let serials = json!({"serials": ["0a:0b", "no number"], "nodes": ["node-c"], "pods": ["x"]});
    api.put(revocation("nodemesh-system", "half", serials));
    let settings = settings();
    let mut revoked = settings.revocations.subscribe();
    let (_registry, _following) = follow_with(&api, settings).await;
    let nodes = |revoked: &Revocations| revoked.nodes.iter().cloned().collect::<Vec<_>>();
    let reached = revoked.wait_for(|revoked| nodes(revoked) == ["node-a", "node-c"]);
    let reached = tokio::time::timeout(PATIENCE, reached)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(Vec::from_iter(&reached.serials), [&[0x0a, 0x0b]]);
    drop(reached);
    api.delete("Revocation", "nodemesh-system", "node");
    let gone = revoked.wait_for(|revoked| nodes(revoked) == ["node-c"]);
    tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
}

#[tokio::test]
async fn slices_say_which_pods_serve() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let slice = |ready: bool, terminating: bool| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "cart-abc", "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "cart"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.1.0.1"],
                "conditions": {"ready": ready, "serving": true, "terminating": terminating},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "cart-1"}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    };
    api.put(slice(false, false));
    let registry = following(&api).await;
    let endpoints =
        |directory: &Directory| match directory.mesh().resolve("10.96.0.1".parse().unwrap(), 80) {
            Resolution::Service(_, endpoints) => endpoints
                .iter()
                .map(|e| (e.address.to_string(), e.port))
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
    assert_eq!(endpoints(&registry.current()), []);
    api.put(slice(true, false));
    let served = [("10.1.0.1".to_owned(), 8080)];
    until(&registry, "a ready endpoint", |d| endpoints(d) == served).await;
    api.put(slice(false, true));
    until(&registry, "a terminating one", |d| endpoints(d).is_empty()).await;
}

#[tokio::test]
async fn a_pod_counts_once_its_namespace_is_known_and_an_address_is_its_newest_pods() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let mut early = pod("early", "10.1.0.9");
    early["metadata"]["namespace"] = "new".into();
    early["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    api.put(early);
    let registry = following(&api).await;
    assert!(!has_pod(&registry.current(), "new", "early"));
    let enrolled = json!({"nodemesh.dev/enroll": "true"});
    api.put(json!({"kind": "Namespace", "metadata": {"name": "new", "labels": enrolled}}));
    until(&registry, "the namespace", |d| has_pod(d, "new", "early")).await;
    // The kubelet's news of the old pod's end may come late.
    let mut late = pod("late", "10.1.0.9");
    late["metadata"]["creationTimestamp"] = "2026-01-01T00:00:07Z".into();
    api.put(late);
    let owner = |d: &Directory| {
        let owner = d.mesh().workload_at("10.1.0.9".parse().unwrap());
        owner.map(|workload| workload.name.clone())
    };
    until(&registry, "the newer pod", |d| {
        owner(d).as_deref() == Some("late")
    })
    .await;
    api.delete("Pod", "shop", "late");
    until(&registry, "its end", |d| {
        owner(d).as_deref() == Some("early")
    })
    .await;
}

#[tokio::test]
async fn an_object_says_what_became_of_it() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let policy = |name: &str, spec: serde_json::Value| {
        json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
        })
    };
    let rules = json!([{"peers": [{"serviceAccount": "web"}]}]);
    let wrong = json!({"direction": "Inbound", "action": "Deny", "rules": rules});
    api.put(policy("wrong", wrong));
    let early = json!({"target": {"service": "later"}, "direction": "Inbound", "action": "Deny", "rules": [{}]});
    api.put(policy("early", early));
    let _registry = following(&api).await;
    let condition = |name: &str, kind: &str| {
        let status = api.status("AuthorizationPolicy", "shop", name);
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == kind);
        found.map(|c| {
            let text = |field: &str| c[field].as_str().unwrap().to_owned();
            assert_eq!(c["observedGeneration"], 1);
            (text("status"), text("reason"), text("message"))
        })
    };
    let is = |name: &'static str, kind: &'static str, status: &'static str| {
        let condition = &condition;
        async move {
            let began = std::time::Instant::now();
            loop {
                match condition(name, kind) {
                    Some((found, reason, message)) if found == status => return (reason, message),
                    other => assert!(began.elapsed() < PATIENCE, "{name} {kind}: {other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let (reason, message) = is("wrong", "Accepted", "False").await;
    assert_eq!(reason, "Invalid");
    assert!(
        message.starts_with("spec.rules[0].peers[0].serviceAccount: needs namespace"),
        "{message}"
    );
    is("web-to-cart", "Accepted", "True").await;
    is("web-to-cart", "Complete", "True").await;
    is("early", "Accepted", "True").await;
    let (_, message) = is("early", "Complete", "False").await;
    assert!(
        message.contains("there is no Service \"later\""),
        "{message}"
    );
    api.put(
        json!({"kind": "Service", "metadata": {"name": "later", "namespace": "shop"},
        "spec": {"selector": {"app": "cart"}, "clusterIP": "10.96.0.9", "ports": [{"port": 80}]}}),
    );
    is("early", "Complete", "True").await;
}

/// A double of an API server that answers in a thread of its own.
fn api_server() -> Api {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            tell.send(Api::start().await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    told.recv().unwrap()
}

#[test]
fn it_follows_a_cluster_that_kubeconfig_names() {
    let (pki, api) = (Pki::new(), api_server());
    api.apply(SCENARIO);
    let server = json!({"server": api.url});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "double",
        "clusters": [{"name": "double", "cluster": server}],
        "contexts": [{"name": "double", "context": {"cluster": "double", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
    });
    fs::write(pki.path("kubeconfig"), config.to_string()).unwrap();
    let mut command = sourceless_command(&pki, "127.0.0.1:0");
    command.arg("--kubernetes");
    command.env("KUBECONFIG", pki.path("kubeconfig"));
    let (_running, _, _log) = Running::start(command);
    assert_eq!(status(&pki)["workloads"], 2);
    api.delete("Pod", "shop", "web-1");
    while status(&pki)["workloads"] != 1 {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_cluster_that_is_not_there_is_told() {
    let pki = Pki::new();
    let mut command = sourceless_command(&pki, "127.0.0.1:0");
    let command = command.arg("--kubernetes").env("KUBECONFIG", "/nowhere");
    let ended = command.output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let why = text(&ended.stderr);
    assert!(why.contains("finding the Kubernetes API"), "{why}");
    // One source and no other.
    let both = command.args(["--manifests", "x"]).output().unwrap();
    assert_eq!(both.status.code(), Some(64));
    let none = sourceless_command(&pki, "127.0.0.1:0").output().unwrap();
    assert_eq!(none.status.code(), Some(64));
}
