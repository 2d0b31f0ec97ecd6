//! The start-up taint goes when that node's agent is ready, and nothing else of the node with it.

#[path = "support/api.rs"]
mod api;
#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Api;
use cluster::{PATIENCE, SCENARIO, follow_with, settings};
use mesh_api::node::NodeReport;
use mesh_api::node::node_service_client::NodeServiceClient;
use mesh_control::registry::Registry;
use mesh_control::sources::kubernetes::Settings;
use serde_json::{Value, json};
use support::Control;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

const KEY: &str = "nodemesh.dev/agent-not-ready";

/// A node as a kubelet registers it, with these taints.
fn node(name: &str, taints: &[(&str, &str)]) -> Value {
    let taint = |(key, effect): &(&str, &str)| json!({"key": key, "effect": effect});
    let taints: Vec<Value> = taints.iter().map(taint).collect();
    json!({
        "kind": "Node", "metadata": {"name": name, "labels": {"pool": "a"}},
        "spec": {"providerID": "cloud://1", "taints": taints},
    })
}

fn fresh(name: &str) -> Value {
    node(name, &[(KEY, "NoSchedule")])
}

/// Keys of the taints of a node.
fn taints(api: &Api, name: &str) -> Vec<String> {
    let node = api.get("Node", "", name);
    let taints = node["spec"]["taints"].as_array().cloned();
    let keys = taints.unwrap_or_default().into_iter();
    keys.map(|taint| taint["key"].as_str().unwrap().to_owned())
        .collect()
}

fn ready() -> NodeReport {
    NodeReport {
        version: "1.2.3".to_owned(),
        ready: true,
        ..NodeReport::default()
    }
}

fn not_ready(why: &str) -> NodeReport {
    NodeReport {
        ready: false,
        not_ready: why.to_owned(),
        ..ready()
    }
}

/// A cluster with these nodes, and a control component that follows it.
async fn following(api: &Api, nodes: &[Value]) -> (Arc<Registry>, JoinHandle<()>) {
    api.apply(SCENARIO);
    for node in nodes {
        api.put(node.clone());
    }
    let settings = Settings {
        startup_taint: Some(KEY.parse().unwrap()),
        ..settings()
    };
    follow_with(api, settings).await
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Until control has looked at agents several times: each look is a renewal of the lease in statuses' pace,
/// which is the same.
async fn some_looks(api: &Api) {
    let renewals = api.writes("Lease");
    until("looks", || api.writes("Lease") >= renewals + 10).await;
}

#[tokio::test]
async fn it_goes_when_that_nodes_agent_is_ready_and_all_else_stays() {
    let api = Api::start().await;
    let crowded = node(
        "node-a",
        &[
            ("example.com/first", "NoSchedule"),
            (KEY, "NoSchedule"),
            ("node.kubernetes.io/unschedulable", "NoSchedule"),
            (KEY, "NoExecute"),
        ],
    );
    let (registry, _following) = following(&api, &[crowded, fresh("node-b")]).await;
    some_looks(&api).await;
    assert_eq!(taints(&api, "node-a").len(), 4, "nobody has reported");
    let before = api.get("Node", "", "node-a");

    registry.report("node-a", &ready(), Instant::now()).unwrap();
    let others = ["example.com/first", "node.kubernetes.io/unschedulable"];
    until("off", || taints(&api, "node-a") == others).await;
    let mut expected = before;
    let after = api.get("Node", "", "node-a");
    for part in [
        "/spec/taints",
        "/metadata/generation",
        "/metadata/resourceVersion",
    ] {
        *expected.pointer_mut(part).unwrap() = after.pointer(part).unwrap().clone();
    }
    assert_eq!(after, expected, "nothing else is another");
    some_looks(&api).await;
    assert_eq!(taints(&api, "node-b"), [KEY], "its agent has not reported");
    assert_eq!(api.writes("Node"), 1);
}

#[tokio::test]
async fn it_stays_while_the_agent_is_not_ready_or_says_nothing_of_it() {
    let api = Api::start().await;
    let (registry, _following) = following(&api, &[fresh("node-a")]).await;
    for report in [not_ready("the CNI plugin is not in place"), not_ready("")] {
        registry.report("node-a", &report, Instant::now()).unwrap();
        some_looks(&api).await;
        assert_eq!(taints(&api, "node-a"), [KEY]);
    }
    registry.report("node-a", &ready(), Instant::now()).unwrap();
    until("off", || taints(&api, "node-a").is_empty()).await;
    // It is not put back.
    let gone = not_ready("the disk is full");
    registry.report("node-a", &gone, Instant::now()).unwrap();
    some_looks(&api).await;
    assert_eq!(taints(&api, "node-a"), [""; 0]);
}

#[tokio::test]
async fn what_was_said_before_the_node_was_made_counts_for_nothing() {
    let api = Api::start().await;
    let (registry, _following) = following(&api, &[]).await;
    registry.report("node-x", &ready(), Instant::now()).unwrap();
    // Another machine of that name.
    api.put(fresh("node-x"));
    some_looks(&api).await;
    assert_eq!(taints(&api, "node-x"), [KEY]);
    registry.report("node-x", &ready(), Instant::now()).unwrap();
    until("off", || taints(&api, "node-x").is_empty()).await;
}

async fn report(channel: &Channel, report: NodeReport) {
    let mut client = NodeServiceClient::new(channel.clone());
    client.report(report).await.unwrap();
}

#[tokio::test]
async fn no_other_nodes_word_takes_it_off() {
    let api = Api::start().await;
    let (registry, _following) = following(&api, &[fresh("node-a"), fresh("node-b")]).await;
    let control = Control::serving(registry).await;
    // Whatever node-b says, it says of the node that its certificate names.
    let liar = control.node("node-b").await;
    report(&liar, ready()).await;
    until("node-b's", || taints(&api, "node-b").is_empty()).await;
    some_looks(&api).await;
    assert_eq!(taints(&api, "node-a"), [KEY]);
    let nobody = control.connect(None).await.unwrap();
    let refused = NodeServiceClient::new(nobody).report(ready()).await;
    assert_eq!(
        refused.unwrap_err().code(),
        tonic::Code::Unauthenticated,
        "who has no certificate reports of no node"
    );
    some_looks(&api).await;
    assert_eq!(taints(&api, "node-a"), [KEY]);
    report(&control.node("node-a").await, ready()).await;
    until("node-a's", || taints(&api, "node-a").is_empty()).await;
}

#[tokio::test]
async fn a_node_that_changes_meanwhile_is_looked_at_again() {
    let api = Api::start().await;
    let (registry, _following) = following(&api, &[fresh("node-a")]).await;
    // Just before the patch comes somebody puts another taint first, so that ours is elsewhere.
    let moved = [("example.com/drain", "NoExecute"), (KEY, "NoSchedule")];
    api.overtake(node("node-a", &moved));
    registry.report("node-a", &ready(), Instant::now()).unwrap();
    until("off", || taints(&api, "node-a") == ["example.com/drain"]).await;
    assert!(api.writes("Node") >= 2, "the first patch was overtaken");
}

#[tokio::test]
async fn a_node_that_is_made_anew_meanwhile_keeps_its_taint() {
    let api = Api::start().await;
    let (registry, _following) = following(&api, &[fresh("node-a")]).await;
    let mut another = fresh("node-a");
    another["metadata"]["uid"] = "another-machine".into();
    api.overtake(another);
    registry.report("node-a", &ready(), Instant::now()).unwrap();
    until("the patch", || api.writes("Node") >= 1).await;
    some_looks(&api).await;
    assert_eq!(taints(&api, "node-a"), [KEY], "its agent has not reported");
    registry.report("node-a", &ready(), Instant::now()).unwrap();
    until("off", || taints(&api, "node-a").is_empty()).await;
}

#[tokio::test]
async fn an_api_server_that_refuses_is_asked_again_but_not_pressed() {
    let api = Api::start().await;
    let (registry, _following) = following(&api, &[fresh("node-a")]).await;
    api.refuse("Node", Some(403));
    let began = Instant::now();
    registry.report("node-a", &ready(), Instant::now()).unwrap();
    until("tries", || api.turned_away("Node") >= 4).await;
    // Of looks 50 ms apart, the first four tries are 350 ms apart at least.
    assert!(
        began.elapsed() >= Duration::from_millis(350),
        "it is pressed"
    );
    assert_eq!(taints(&api, "node-a"), [KEY]);
    api.refuse("Node", None);
    until("off", || taints(&api, "node-a").is_empty()).await;
}

#[tokio::test]
async fn replicas_that_both_try_take_it_off_once() {
    let api = Api::start().await;
    let nodes: Vec<Value> = (0..20)
        .map(|n| {
            node(
                &format!("n{n}"),
                &[(KEY, "NoSchedule"), ("example.com/x", "NoSchedule")],
            )
        })
        .collect();
    let (first, _one) = following(&api, &nodes).await;
    let (second, _other) = following(&api, &[]).await;
    for n in 0..nodes.len() {
        for registry in [&first, &second] {
            let name = format!("n{n}");
            registry.report(&name, &ready(), Instant::now()).unwrap();
        }
    }
    let all_off = || (0..nodes.len()).all(|n| taints(&api, &format!("n{n}")) == ["example.com/x"]);
    until("all off", all_off).await;
    some_looks(&api).await;
    assert!(all_off(), "a second patch took another taint");
}
