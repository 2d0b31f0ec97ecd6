//! Delta discovery over real TLS: wildcard, names, changes, reconnects.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_api::POLICY_TYPE_URL;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status as Nack};
use mesh_api::convert::Entry;
use mesh_api::convert::policy::PolicyEntry;
use mesh_api::policy::Policy;
use mesh_control::audit::Event;
use support::subscriber::{Subscriber, entry, names, subscribe, subscribe_policies};
use support::{Control, MANIFESTS, assert_refused};
use tonic::Code;

const CART_POD: &str = "Kubernetes//v1/Pod/shop/cart-1";
const WEB_POD: &str = "Kubernetes//v1/Pod/shop/web-1";
const OLD_POD: &str = "Kubernetes//v1/Pod/legacy/old-1";
const CART_SERVICE: &str = "shop/cart.shop.svc.cluster.local";

fn versions(response: &DeltaDiscoveryResponse) -> BTreeMap<String, String> {
    let pairs = response
        .resources
        .iter()
        .map(|r| (r.name.clone(), r.version.clone()));
    pairs.collect()
}

#[tokio::test]
async fn a_wildcard_gets_everything_as_the_manifests_say_it() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = Subscriber::open(&node, subscribe(&["*"])).await;
    let all = stream.next().await.unwrap();
    assert_eq!(names(&all), [OLD_POD, CART_POD, WEB_POD, CART_SERVICE]);
    let Entry::Workload(cart) = entry(&all, CART_POD) else {
        panic!("a workload")
    };
    assert_eq!(cart.identity.to_string(), support::CART);
    assert_eq!((cart.node.as_str(), cart.enrolled()), ("node-a", true));
    assert_eq!(
        cart.addresses,
        [
            "10.1.0.1".parse::<std::net::IpAddr>().unwrap(),
            "fd00:1::1".parse().unwrap()
        ]
    );
    assert_eq!(cart.services[CART_SERVICE], BTreeMap::from([(80, 8080)]));
    let Entry::Workload(old) = entry(&all, OLD_POD) else {
        panic!("a workload")
    };
    assert_eq!(
        (old.identity.service_account(), old.enrolled()),
        ("default", false)
    );
    let Entry::Service(service) = entry(&all, CART_SERVICE) else {
        panic!("a service")
    };
    assert_eq!((service.addresses.len(), service.ports.len()), (2, 1));
    let cart = all.resources.iter().find(|r| r.name == CART_POD).unwrap();
    assert_eq!(cart.aliases, ["/10.1.0.1", "/fd00:1::1"]);
}

#[tokio::test]
async fn changes_and_removals_alone_are_pushed() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = Subscriber::open(&node, subscribe(&[])).await;
    let before = versions(&stream.next().await.unwrap());
    assert_eq!(
        before.len(),
        4,
        "a stream that begins without names is a wildcard"
    );
    let changed = MANIFESTS.replace("{podIPs: [{ip: 10.1.0.2}]}", "{podIPs: [{ip: 10.1.0.9}]}");
    let (kept, _) = changed.split_once("---\nkind: Service\n").unwrap();
    control.write_manifests(kept);
    let change = stream.next().await.unwrap();
    // The cart pod changes as well: the service was among its services.
    assert_eq!(names(&change), [CART_POD, WEB_POD]);
    assert_eq!(change.removed_resources, [CART_SERVICE]);
    assert_ne!(versions(&change)[WEB_POD], before[WEB_POD]);

    control.write_manifests(MANIFESTS);
    let back = stream.next().await.unwrap();
    let restored = versions(&back);
    for name in [CART_POD, WEB_POD, CART_SERVICE] {
        assert_eq!(
            restored[name], before[name],
            "the same content has the same version"
        );
    }
}

#[tokio::test]
async fn names_aliases_and_what_does_not_exist() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream =
        Subscriber::open(&node, subscribe(&["/10.96.0.1", WEB_POD, "/10.9.9.9"])).await;
    let first = stream.next().await.unwrap();
    // A service comes with its workloads.
    assert_eq!(names(&first), [CART_POD, WEB_POD, CART_SERVICE]);
    assert_eq!(first.removed_resources, ["/10.9.9.9"]);

    stream.send(subscribe(&[CART_SERVICE, "/fd00:1::1"])).await;
    let second = stream.next().await.unwrap();
    assert_eq!(
        names(&second),
        [CART_POD, CART_SERVICE],
        "asked again, sent again"
    );

    let drop = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec![WEB_POD.to_owned()],
        ..subscribe(&[])
    };
    stream.send(drop).await;
    let dropped = stream.next().await.unwrap();
    assert_eq!(dropped.removed_resources, [WEB_POD]);
    // What comes into being later is pushed to who has asked; what was dropped is not.
    let later = MANIFESTS
        .replace("{podIPs: [{ip: 10.1.0.3}]}", "{podIPs: [{ip: 10.9.9.9}]}")
        .replace("{podIPs: [{ip: 10.1.0.2}]}", "{podIPs: [{ip: 10.1.0.77}]}");
    control.write_manifests(&later);
    let third = stream.next().await.unwrap();
    assert_eq!(names(&third), [OLD_POD]);
    assert!(third.removed_resources.is_empty());
}

#[tokio::test]
async fn a_reconnect_gets_what_it_missed_and_no_more_across_a_restart() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = Subscriber::open(&node, subscribe(&["*"])).await;
    let held = versions(&stream.next().await.unwrap());
    drop(stream);

    let control = Control::again(control).await;
    let node = control.node("node-a").await;
    let mut known = held.clone();
    known.insert(WEB_POD.to_owned(), "an older version".to_owned());
    known.insert("Kubernetes//v1/Pod/shop/gone".to_owned(), "1".to_owned());
    let first = DeltaDiscoveryRequest {
        initial_resource_versions: known.into_iter().collect(),
        ..subscribe(&["*"])
    };
    let mut stream = Subscriber::open(&node, first).await;
    let missed = stream.next().await.unwrap();
    assert_eq!(names(&missed), [WEB_POD]);
    assert_eq!(missed.removed_resources, ["Kubernetes//v1/Pod/shop/gone"]);
    assert_eq!(versions(&missed)[WEB_POD], held[WEB_POD]);
}

#[tokio::test]
async fn a_nack_is_recorded_and_not_answered_with_the_same() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = Subscriber::open(&node, subscribe(&["*"])).await;
    let first = stream.responses.message().await.unwrap().unwrap();
    let nack = DeltaDiscoveryRequest {
        response_nonce: first.nonce,
        error_detail: Some(Nack {
            code: 3,
            message: "uid is empty".to_owned(),
        }),
        ..subscribe(&[])
    };
    stream.send(nack).await;
    stream.send(subscribe(&[WEB_POD])).await;
    let second = stream.next().await.unwrap();
    assert_eq!(names(&second), [WEB_POD], "only what was asked for anew");
    assert_eq!(control.audit.count(Event::DiscoveryRefused), 1);
}

#[tokio::test]
async fn other_types_of_resources_are_refused_by_name() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let first = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..Default::default()
    };
    let mut stream = Subscriber::open(&node, first).await;
    assert_refused(stream.next().await, Code::InvalidArgument, "Cluster");
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_it_was_opened_with() {
    let control = Control::start().await;
    let uri = "spiffe://cluster.local/nodemesh/node/node-a";
    let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(3);
    let brief = control.pki.leaf(uri, |params| params.not_after = end);
    let node = control.connect(Some(&brief)).await.unwrap();
    let mut stream = Subscriber::open(&node, subscribe(&["*"])).await;
    stream.next().await.unwrap();
    assert_refused(stream.next().await, Code::Unauthenticated, "expired");
}

#[tokio::test]
async fn manifests_with_mistakes_change_nothing() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = Subscriber::open(&node, subscribe(&["*"])).await;
    stream.next().await.unwrap();
    control.write_manifests(&MANIFESTS.replace("10.1.0.2", "10.1.0.1"));
    // Long enough for several polls; what the stream would get is asked for, not slept for.
    let pushed = tokio::time::timeout(Duration::from_secs(2), stream.responses.message());
    assert!(pushed.await.is_err(), "nothing is pushed");
    control.write_manifests(&MANIFESTS.replace("10.1.0.2", "10.1.0.99"));
    assert_eq!(names(&stream.next().await.unwrap()), [WEB_POD]);
}

#[tokio::test]
async fn many_nodes_each_get_every_change() {
    const NODES: usize = 60;
    let control = Control::start().await;
    let mut streams = Vec::new();
    for n in 0..NODES {
        let node = control.node(&format!("node-{n}")).await;
        let mut stream = Subscriber::open(&node, subscribe(&["*"])).await;
        assert_eq!(names(&stream.next().await.unwrap()).len(), 4);
        streams.push(stream);
    }
    control.write_manifests(&MANIFESTS.replace("10.1.0.2", "10.1.0.99"));
    for stream in &mut streams {
        assert_eq!(names(&stream.next().await.unwrap()), [WEB_POD]);
    }
}

const POLICY: &str = r#"
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: web, namespace: shop}
spec: {direction: Inbound, action: Deny, rules: [{peers: [{namespace: legacy}]}]}
---
kind: AuthenticationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: web, namespace: shop}
spec: {mode: Permissive}
"#;

const AUTHORIZATION: &str = "authorization/shop/web";
const AUTHENTICATION: &str = "authentication/shop/web";

#[tokio::test]
async fn a_change_of_both_types_comes_as_one() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = Subscriber::open(&node, subscribe(&["*"])).await;
    let addresses = stream.next().await.unwrap();
    assert_eq!((names(&addresses).len(), addresses.more), (4, false));
    stream.send(subscribe_policies()).await;
    let policies = stream.next().await.unwrap();
    assert_eq!(policies.type_url, POLICY_TYPE_URL);
    assert_eq!(policies.resources, [], "an answer, though there are none");
    assert!(!policies.more, "the first answer of a type is complete");
    assert_eq!(policies.system_version_info, addresses.system_version_info);

    control.write_manifests(&(MANIFESTS.replace("10.1.0.2", "10.1.0.99") + POLICY));
    let first = stream.next().await.unwrap();
    assert_eq!(names(&first), [WEB_POD]);
    assert!(first.more, "the policies belong to it");
    let last = stream.next().await.unwrap();
    assert_eq!(names(&last), [AUTHENTICATION, AUTHORIZATION]);
    assert!(!last.more);
    assert_eq!(first.system_version_info, last.system_version_info);
    assert_ne!(first.system_version_info, addresses.system_version_info);
    let any = last.resources[1].resource.as_ref().unwrap();
    assert_eq!(any.type_url, POLICY_TYPE_URL);
    let policy: Policy = prost::Message::decode(any.value.as_slice()).unwrap();
    let PolicyEntry::Authorization(policy) = PolicyEntry::from_wire(&policy).unwrap() else {
        panic!("an authorization policy")
    };
    assert_eq!(&*policy.key, "shop/web");

    // A change of one type is complete with it.
    control.write_manifests(&MANIFESTS.replace("10.1.0.2", "10.1.0.99"));
    let gone = stream.next().await.unwrap();
    assert_eq!(gone.removed_resources, [AUTHENTICATION, AUTHORIZATION]);
    assert!(!gone.more);
    control.write_manifests(MANIFESTS);
    let back = stream.next().await.unwrap();
    assert_eq!((names(&back), back.more), (vec![WEB_POD], false));
    assert_eq!(back.system_version_info, addresses.system_version_info);
}

#[tokio::test]
async fn who_asks_for_one_type_gets_complete_changes_of_it() {
    let control = Control::start().await;
    let node = control.node("node-a").await;
    let mut stream = Subscriber::open(&node, subscribe_policies()).await;
    stream.next().await.unwrap();
    control.write_manifests(&(MANIFESTS.replace("10.1.0.2", "10.1.0.99") + POLICY));
    let change = stream.next().await.unwrap();
    assert_eq!(names(&change), [AUTHENTICATION, AUTHORIZATION]);
    assert!(!change.more);
}
