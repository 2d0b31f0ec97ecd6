//! What the statuses of the mesh's own objects say, and who writes them.

#[path = "support/api.rs"]
mod api;
#[path = "support/cluster.rs"]
mod cluster;

use std::time::{Duration, Instant};

use api::Api;
use cluster::{PATIENCE, SCENARIO, follow_with, settings};
use mesh_api::node::{NodeReport, PodReport};
use mesh_control::registry::Registry;
use mesh_control::sources::kubernetes::lease::Lease;
use serde_json::{Value, json};

/// A denial for both pods of namespace shop, which are on node-a and node-b.
const POLICY: &str = "no-legacy";

/// Waits for the condition of the policy to be so, and returns its message.
async fn in_force(api: &Api, policy: &str, status: &str, part: &str) -> String {
    let began = Instant::now();
    loop {
        let found = api.status("AuthorizationPolicy", "shop", policy);
        let conditions = found["conditions"].as_array().cloned().unwrap_or_default();
        let condition = conditions.into_iter().find(|c| c["type"] == "InForce");
        let condition = condition.unwrap_or_default();
        let message = condition["message"].as_str().unwrap_or_default();
        if condition["status"] == status && message.contains(part) {
            return format!("{}: {message}", found["nodes"].as_str().unwrap());
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{policy} is {found}, not {status} {part:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node's report: its pod, with what is served now in force.
fn report(registry: &Registry, node: &str, pod: &str, unreadable: &[&str]) {
    let version = registry.current().version().to_string();
    let report = NodeReport {
        version: "1.2.3".to_owned(),
        discovery_version: version.clone(),
        pods: vec![PodReport {
            namespace: "shop".to_owned(),
            name: pod.to_owned(),
            state: "enrolled".to_owned(),
            policy_version: version,
            ..PodReport::default()
        }],
        unreadable_policies: unreadable.iter().map(|&name| name.to_owned()).collect(),
        ..NodeReport::default()
    };
    registry.report(node, &report, Instant::now()).unwrap();
}

fn denial(peer: &Value) -> Value {
    json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": POLICY, "namespace": "shop"},
        "spec": {"direction": "Inbound", "action": "Deny", "rules": [{"peers": [peer]}]},
    })
}

#[tokio::test]
async fn a_policy_says_on_which_nodes_it_is_in_force_and_why_not_on_others() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let (registry, _following) = follow_with(&api, settings()).await;
    let unheard = "node-a: has not reported since this mesh-control started; node-b: has not";
    let said = in_force(&api, POLICY, "False", unheard).await;
    assert!(
        said.starts_with("0/2: in force on 0 of 2 nodes; "),
        "{said}"
    );

    report(&registry, "node-a", "cart-1", &[]);
    in_force(
        &api,
        POLICY,
        "False",
        "in force on 1 of 2 nodes; node-b: has not",
    )
    .await;
    // This one is for pods on node-a alone.
    let said = in_force(&api, "web-to-cart", "True", "").await;
    assert_eq!(said, "1/1: in force on 1 of 1 nodes");

    let name = format!("authorization/shop/{POLICY}");
    report(&registry, "node-b", "web-1", &[&name]);
    in_force(
        &api,
        POLICY,
        "False",
        "node-b: its agent can't read this version",
    )
    .await;
    report(&registry, "node-b", "another", &[]);
    in_force(
        &api,
        POLICY,
        "False",
        "node-b: its agent does not serve pod shop/web-1 yet",
    )
    .await;
    report(&registry, "node-b", "web-1", &[]);
    let said = in_force(&api, POLICY, "True", "").await;
    assert_eq!(said, "2/2: in force on 2 of 2 nodes");

    // A new version is on no node yet.
    let older = registry.number();
    api.put(denial(&json!({"namespace": "default"})));
    let lag = "node-a: the worker of pod shop/cart-1 has an older state of the mesh";
    in_force(&api, POLICY, "False", lag).await;
    assert!(registry.number() > older);
    report(&registry, "node-a", "cart-1", &[]);
    report(&registry, "node-b", "web-1", &[]);
    in_force(&api, POLICY, "True", "2 of 2").await;
    // What else changes is no reason to doubt it.
    api.put(json!({
        "kind": "Pod", "metadata": {"name": "old-1", "namespace": "legacy"},
        "spec": {"nodeName": "node-c"}, "status": {"podIPs": [{"ip": "10.1.0.44"}]},
    }));
    cluster::until(&registry, "the pod", |d| d.mesh().workloads().count() == 3).await;
    let renewals = api.writes("Lease");
    while api.writes("Lease") < renewals + 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    in_force(&api, POLICY, "True", "2 of 2").await;
}

#[tokio::test]
async fn statuses_that_are_so_are_not_written() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    let (_registry, _following) = follow_with(&api, settings()).await;
    in_force(&api, POLICY, "False", "0 of 2").await;
    in_force(&api, "web-to-cart", "False", "0 of 1").await;
    let (written, renewed) = (api.writes("AuthorizationPolicy"), api.writes("Lease"));
    // One renewal a look, and a look at every object after it.
    while api.writes("Lease") < renewed + 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(api.writes("AuthorizationPolicy"), written);
}

#[tokio::test]
async fn one_replica_writes_and_another_goes_on_when_it_has_gone() {
    let api = Api::start().await;
    api.apply(SCENARIO);
    // Nodes report to the first replica alone, so that it shows whose words are written.
    let (first, following) = follow_with(&api, settings()).await;
    report(&first, "node-a", "cart-1", &[]);
    report(&first, "node-b", "web-1", &[]);
    in_force(&api, POLICY, "True", "2 of 2").await;
    let (_second, _other) = follow_with(&api, settings()).await;
    let asked = api.asked("Lease", false);
    while api.asked("Lease", false) < asked + 10 {
        in_force(&api, POLICY, "True", "2 of 2").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    following.abort();
    in_force(&api, POLICY, "False", "0 of 2").await;
}

#[tokio::test]
async fn a_lease_ends_at_its_holder_before_anybody_else_has_it() {
    let api = Api::start().await;
    let duration = Duration::from_millis(900);
    let mut holder = Lease::new(&api.client(), "lease", duration);
    let mut other = Lease::new(&api.client(), "lease", duration);
    assert!(holder.renew().await.unwrap());
    assert!(!other.renew().await.unwrap());
    assert!(holder.renew().await.unwrap());
    // The holder can't reach the server any more.
    let began = Instant::now();
    while !other.renew().await.unwrap() {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() >= duration, "it was taken early");
    assert!(!holder.is_held());
    assert!(other.is_held());
    assert!(!holder.renew().await.unwrap(), "it is another's now");
    // What can't be renewed stays held for a while, and no longer.
    api.refuse("Lease", Some(503));
    other.renew().await.unwrap_err();
    while other.is_held() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
