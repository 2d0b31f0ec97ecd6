//! Against a real API server: what the double in `support/api.rs` only claims of one.
//!
//! `KUBEBUILDER_ASSETS` names a folder with `etcd`, `kube-apiserver` and `kubectl`, as envtest has it; then
//! `cargo xtask test` runs these tests, and without it lists them as not run.

#[path = "../support/admission.rs"]
mod admission;
mod server;
mod taint;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use mesh_api::kinds::OWN_KINDS;
use mesh_api::node::{NodeReport, PodReport};
use mesh_control::attestor::{ApiServer, Attestors, Evidence, ServiceAccounts};
use mesh_control::refusal::Refusal;
use mesh_control::sources::kubernetes::{Follower, Pace, Settings};
use mesh_control::sources::manifests::parse;
use serde_json::{Value, json};
use server::{ADMIN_TOKEN, Server, done, failed};
use tokio::sync::watch;

/// What is waited for comes within this time, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the manifests' kinds are installed from.
const DEFINITIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/definitions.yaml");
/// All that an install consists of.
const MANIFESTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/manifests/nodemesh.yaml"
);

/// Runs `kubectl` until it says so.
fn until(server: &Server, arguments: &[&str], input: &str, holds: impl Fn(bool, &str) -> bool) {
    let began = Instant::now();
    loop {
        let (worked, said) = server.kubectl(arguments, input);
        if holds(worked, &said) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "kubectl {arguments:?}: {said}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A server with the mesh's kinds, and namespaces `shop`, `other` and `nodemesh-system`.
fn installed() -> Server {
    let server = Server::start();
    done(server.kubectl(&["apply", "--server-side", "-f", DEFINITIONS], ""));
    for kind in OWN_KINDS {
        let definition = format!("crd/{}.nodemesh.dev", kind.plural);
        let wait = [
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            &definition,
        ];
        done(server.kubectl(&wait, ""));
    }
    for namespace in ["shop", "other", "nodemesh-system"] {
        done(server.kubectl(&["create", "namespace", namespace], ""));
    }
    server
}

fn policy(namespace: &str, spec: &Value) -> String {
    let object = json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": namespace}, "spec": spec,
    });
    object.to_string()
}

#[test]
#[ignore = "needs a real API server: KUBEBUILDER_ASSETS"]
fn sound_objects_are_written_and_wrong_ones_refused_in_our_words() {
    let server = installed();
    let scenario = include_str!("../scenarios/policies.yaml");
    let ours = scenario
        .split("\n---\n")
        .filter(|text| text.contains("nodemesh.dev/v1alpha1"));
    for document in ours {
        done(server.kubectl(&["apply", "--server-side", "-f", "-"], document));
    }
    let allow = |rules: Value| json!({"direction": "Inbound", "action": "Allow", "rules": rules});
    let mesh_wide =
        json!({"target": {"mesh": true}, "direction": "Inbound", "action": "Deny", "rules": [{}]});
    for (namespace, spec, words) in [
        (
            "shop",
            allow(json!([{"peers": [{}]}])),
            "empty: give at least one of identity, namespace",
        ),
        (
            "shop",
            allow(json!([{"peers": [{"serviceAccount": "web"}]}])),
            "serviceAccount needs namespace beside it",
        ),
        (
            "shop",
            allow(json!([{"peers": [{"cidr": "10.0.0.1/8"}]}])),
            "is not an address block such as 10.0.0.0/8",
        ),
        (
            "shop",
            allow(json!([{"ports": ["http"]}])),
            "is not a port: 1 to 65535",
        ),
        (
            "shop",
            json!({"target": {"service": "web", "labels": {"a": "b"}}, "direction": "Inbound", "action": "Deny", "rules": [{}]}),
            "give exactly one of mesh, service, labels",
        ),
        (
            "shop",
            mesh_wide,
            "only policies in namespace nodemesh-system can be for the whole mesh",
        ),
    ] {
        // A policy of admission is in force some time after it was written.
        let text = policy(namespace, &spec);
        let create = ["create", "--dry-run=server", "-f", "-"];
        until(&server, &create, &text, |worked, said| {
            !worked && said.contains(words)
        });
    }
    let explained = done(server.kubectl(&["explain", "nmauthz.spec.action"], ""));
    assert!(explained.contains("Deny comes before Allow"), "{explained}");
}

#[test]
#[ignore = "needs a real API server: KUBEBUILDER_ASSETS"]
fn an_editor_of_one_namespace_cant_touch_another() {
    let server = installed();
    let manifests = fs::read_to_string(MANIFESTS).unwrap();
    let mut roles = 0;
    for document in manifests.split("\n---\n") {
        let object = admission::from_yaml(document);
        if object["kind"] == "ClusterRole" {
            roles += 1;
            done(server.kubectl(&["apply", "--server-side", "-f", "-"], &object.to_string()));
        }
    }
    assert!(roles > 0, "no roles in {MANIFESTS}");
    // Nobody aggregates roles here: what would be is bound itself.
    for role in ["nodemesh-edit-policies", "nodemesh-view"] {
        let bind = [
            "create",
            "rolebinding",
            role,
            "--clusterrole",
            role,
            "--user",
            "editor",
            "-n",
            "shop",
        ];
        done(server.kubectl(&bind, ""));
    }
    let deny = json!({"direction": "Inbound", "action": "Deny", "rules": [{}]});
    let create = ["--as=editor", "create", "-f", "-"];
    until(&server, &create, &policy("shop", &deny), |worked, said| {
        worked || said.contains("already exists")
    });
    for (namespace, what) in [
        ("other", "AuthorizationPolicy"),
        ("nodemesh-system", "AuthorizationPolicy"),
    ] {
        let why = failed(server.kubectl(&create, &policy(namespace, &deny)));
        assert!(why.contains("forbidden"), "{what} in {namespace}: {why}");
    }
    let delete = ["--as=editor", "delete", "nmauthz", "-n", "other", "--all"];
    assert!(failed(server.kubectl(&delete, "")).contains("forbidden"));
    let patch = [
        "--as=editor",
        "patch",
        "nmauthz",
        "p",
        "-n",
        "shop",
        "--subresource=status",
        "--type=merge",
        "-p",
        "{}",
    ];
    assert!(failed(server.kubectl(&patch, "")).contains("forbidden"));
    for (verb, resource) in [("create", "revocations"), ("create", "workerbudgets")] {
        let may = [
            "--as=editor",
            "auth",
            "can-i",
            verb,
            &format!("{resource}.nodemesh.dev"),
            "-n",
            "shop",
        ];
        assert!(
            failed(server.kubectl(&may, "")).contains("no"),
            "{verb} {resource}"
        );
    }
}

#[tokio::test]
#[ignore = "needs a real API server: KUBEBUILDER_ASSETS"]
async fn a_token_of_another_audience_pod_or_node_is_refused() {
    let server = installed();
    for account in ["mesh-agent", "other"] {
        done(server.kubectl(
            &["create", "serviceaccount", account, "-n", "nodemesh-system"],
            "",
        ));
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "agent-1", "namespace": "nodemesh-system"},
        "spec": {"nodeName": "node-a", "serviceAccountName": "mesh-agent",
            "containers": [{"name": "agent", "image": "agent"}]},
    });
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}});
    for object in [&node, &pod] {
        done(server.kubectl(&["create", "-f", "-"], &object.to_string()));
    }
    let token = |account: &str, more: &[&str]| {
        let make = [&["create", "token", account, "-n", "nodemesh-system"], more].concat();
        done(server.kubectl(&make, "")).trim().to_owned()
    };
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=agent-1"];
    let audience = "--audience=nodemesh-control";
    let own = server.path("admin-token");
    fs::write(&own, ADMIN_TOKEN).unwrap();
    let api = ApiServer::new(&server.url(), &server.path("apiserver.crt"), &own).unwrap();
    let accounts = ["nodemesh-system/mesh-agent".to_owned()];
    let accounts = ServiceAccounts::new(api, "nodemesh-control", accounts);
    let attestors = Attestors::default().with_service_accounts(accounts);
    let join = async |token: &str, node: Option<&str>| {
        let now_s = mesh_control::now_s();
        let evidence = Evidence { token, node, now_s };
        let joined = attestors.join(evidence).await;
        joined
            .map(|attested| attested.node)
            .map_err(|refused| refused.refusal)
    };
    let good = token("mesh-agent", &[audience, bound[0], bound[1]]);
    assert_eq!(join(&good, Some("node-a")).await, Ok("node-a".to_owned()));
    assert_eq!(
        join(&good, Some("node-b")).await,
        Err(Refusal::TokenWrongNode)
    );
    for (what, token) in [
        (
            "another audience",
            token("mesh-agent", &["--audience=vault", bound[0], bound[1]]),
        ),
        ("no pod", token("mesh-agent", &[audience])),
        ("another account", token("other", &[audience])),
    ] {
        assert!(join(&token, Some("node-a")).await.is_err(), "{what}");
    }
    let delete = [
        "delete",
        "pod",
        "agent-1",
        "-n",
        "nodemesh-system",
        "--force",
        "--grace-period=0",
    ];
    done(server.kubectl(&delete, ""));
    let began = Instant::now();
    // Both the server and control remember for some seconds what was said of a token.
    while join(&good, Some("node-a")).await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "a token outlives its pod");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
#[ignore = "needs a real API server: KUBEBUILDER_ASSETS"]
async fn a_cluster_is_followed_and_statuses_tell_of_nodes() {
    let server = installed();
    let scenario = include_str!("../scenarios/policies.yaml");
    for document in scenario.split("\n---\n") {
        let object = admission::from_yaml(document);
        done(server.kubectl(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            &object.to_string(),
        ));
        if object["kind"] == "Pod" {
            // An API server takes a status by itself only.
            let patch = json!({"status": object["status"]}).to_string();
            let (name, namespace) = (
                &object["metadata"]["name"],
                &object["metadata"]["namespace"],
            );
            let (name, namespace) = (name.as_str().unwrap(), namespace.as_str().unwrap());
            let patch = [
                "patch",
                "pod",
                name,
                "-n",
                namespace,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ];
            done(server.kubectl(&patch, ""));
        }
    }
    let settings = Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        revocations: watch::Sender::default(),
        pace: Pace {
            look: Duration::from_millis(500),
            nodes: Duration::ZERO,
            unheard: Duration::ZERO,
            ..Pace::default()
        },
        startup_taint: None,
    };
    let client = server.client();
    let started = tokio::time::timeout(PATIENCE, Follower::start(&client, settings)).await;
    let (follower, registry) = started.expect("everything is listed").unwrap();
    tokio::spawn(follower.run(registry.clone()));
    let files = [(Path::new("scenario.yaml").to_owned(), scenario.to_owned())];
    let standalone = parse(&files, &"cluster.local".parse().unwrap()).unwrap();
    let workloads = standalone.mesh.workloads().count();
    assert_eq!(registry.current().mesh().workloads().count(), workloads);

    let condition = async |status: &str, part: &str| {
        let began = Instant::now();
        let get = [
            "get",
            "nmauthz",
            "web-from-cart",
            "-n",
            "shop",
            "-o",
            "json",
        ];
        loop {
            let object: Value = serde_json::from_str(&done(server.kubectl(&get, ""))).unwrap();
            let conditions = object["status"]["conditions"].as_array().cloned();
            let mut conditions = conditions.unwrap_or_default().into_iter();
            let found = conditions
                .find(|c| c["type"] == "InForce")
                .unwrap_or_default();
            let message = found["message"].as_str().unwrap_or_default();
            if found["status"] == status && message.contains(part) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{object}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    condition("False", "node-b: has not reported").await;
    let version = registry.current().version().to_string();
    let report = NodeReport {
        discovery_version: version.clone(),
        pods: vec![PodReport {
            namespace: "shop".to_owned(),
            name: "web-1".to_owned(),
            state: "enrolled".to_owned(),
            policy_version: version,
            ..PodReport::default()
        }],
        ..NodeReport::default()
    };
    registry.report("node-b", &report, Instant::now()).unwrap();
    condition("True", "in force on 1 of 1 nodes").await;
    let columns = done(server.kubectl(&["get", "nmauthz", "web-from-cart", "-n", "shop"], ""));
    assert!(columns.contains("1/1"), "{columns}");
}
