//! The start-up taint, with the rights that the chart gives and no more.

use std::time::Instant;

use mesh_api::node::NodeReport;
use mesh_control::sources::kubernetes::{Follower, Pace, Settings};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::server::{Server, done, failed};
use super::{PATIENCE, admission, installed, until};

/// The chart with a start-up taint.
const CHANGED: &str = include_str!("../../../deploy/chart/nodemesh/ci/changed.rendered.yaml");
const KEY: &str = "nodemesh.dev/agent-not-ready";
const CONTROL: &str = "system:serviceaccount:nodemesh-system:nodemesh-control";

/// Control's roles, and the policy of admission.
fn rights(server: &Server) {
    let kinds = [
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    let mut policies = 0;
    for document in CHANGED.split("\n---\n") {
        let object = admission::from_yaml(document);
        let kind = object["kind"].as_str().unwrap_or_default();
        if kinds.contains(&kind) {
            policies += usize::from(kind == "ValidatingAdmissionPolicy");
            done(server.kubectl(&["apply", "--server-side", "-f", "-"], &object.to_string()));
        }
    }
    assert_eq!(policies, 1, "the chart has a policy of admission");
}

fn taints(server: &Server, node: &str) -> Value {
    let said = done(server.kubectl(&["get", "node", node, "-o", "json"], ""));
    let node: Value = serde_json::from_str(&said).unwrap();
    node["spec"]["taints"].clone()
}

#[tokio::test]
#[ignore = "needs a real API server: KUBEBUILDER_ASSETS"]
async fn the_start_up_taint_goes_and_nothing_else_of_a_node() {
    let server = installed();
    rights(&server);
    let other = json!({"key": "example.com/x", "effect": "NoSchedule"});
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-a", "labels": {"zone": "a"}},
        "spec": {"taints": [{"key": KEY, "value": "true", "effect": "NoSchedule"}, other]},
    });
    done(server.kubectl(&["create", "-f", "-"], &node.to_string()));
    // What control's account may not do of a node, in the policy's words or the role's.
    let patch = |what: &str, more: &[&'static str]| {
        let as_control = format!("--as={CONTROL}");
        let patch = [
            &[
                as_control.as_str(),
                "patch",
                "node",
                "node-a",
                "--type=merge",
                "-p",
                what,
            ],
            more,
        ];
        server.kubectl(&patch.concat(), "")
    };
    for (what, words) in [
        (r#"{"metadata": {"labels": {"zone": "b"}}}"#, "no label"),
        (
            r#"{"spec": {"unschedulable": true}}"#,
            "nothing of a node but",
        ),
        (r#"{"spec": {"taints": []}}"#, "touch no other taint"),
    ] {
        // A policy of admission is in force some time after it was written.
        let as_control = format!("--as={CONTROL}");
        let try_it = [
            as_control.as_str(),
            "patch",
            "node",
            "node-a",
            "--type=merge",
            "--dry-run=server",
            "-p",
            what,
        ];
        until(&server, &try_it, "", |worked, said| {
            !worked && said.contains(words)
        });
        failed(patch(what, &[]));
    }
    let status = r#"{"status": {"phase": "Running"}}"#;
    let why = failed(patch(status, &["--subresource=status"]));
    assert!(why.contains("forbidden"), "{why}");

    let settings = Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        revocations: watch::Sender::default(),
        pace: Pace::default(),
        startup_taint: Some(KEY.parse().unwrap()),
    };
    let client = server.client_as(CONTROL);
    let started = Follower::start(&client, settings);
    let started = tokio::time::timeout(PATIENCE, started).await;
    let (follower, registry) = started.expect("everything is listed").unwrap();
    tokio::spawn(follower.run(registry.clone()));
    let ready = NodeReport {
        ready: true,
        ..NodeReport::default()
    };
    registry.report("node-b", &ready, Instant::now()).unwrap();
    tokio::time::sleep(Pace::default().look).await;
    assert_eq!(taints(&server, "node-a").as_array().unwrap().len(), 2);
    registry.report("node-a", &ready, Instant::now()).unwrap();
    let began = Instant::now();
    while taints(&server, "node-a") != json!([other]) {
        assert!(began.elapsed() < PATIENCE, "{}", taints(&server, "node-a"));
        tokio::time::sleep(Pace::default().look / 10).await;
    }
}
