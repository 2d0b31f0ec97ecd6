//! The source's worker decides on each endpoint before it is dialled, through a tunnel or in
//! plain, and as long as the flow is open.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_api::policy::Direction;
use mesh_api::worker::{Endpoint, refusal::Outcome};
use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Mesh, TestPod, endpoint, next_ip, octets, within};
use super::inbound_policy::cut;
use super::policies::{
    allow, app, audit, cidr, deny, identity, members, members_and, on_port, only, service,
};

const OUT: Direction = Direction::Outbound;

/// An endpoint with a label.
fn labelled(at: SocketAddr, identity: &str, app: &str) -> Endpoint {
    Endpoint {
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..endpoint(at, identity)
    }
}

/// An endpoint outside the mesh.
fn plain(at: SocketAddr) -> Endpoint {
    Endpoint {
        hbone: false,
        ..endpoint(at, "spiffe://cluster.local/ns/test/sa/outside")
    }
}

/// A server outside the mesh.
async fn outside() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((next_ip(), 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

fn block(ip: IpAddr) -> String {
    format!("{ip}/32")
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    for (from, to) in [(&mut *client, &mut *server)] {
        from.write_all(b"ping").await.unwrap();
        within("ping", to.read_exact(&mut [0; 4])).await.unwrap();
        to.write_all(b"pong").await.unwrap();
        within("pong", from.read_exact(&mut [0; 4])).await.unwrap();
    }
}

#[tokio::test]
async fn a_member_is_judged_before_it_is_dialled() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let not_b = deny(OUT, "not-b", [identity(&b.identity)]);
    a.apply(members_and("denied", not_b)).await;
    a.dial_in_vain(at).await;
    a.refused("outbound", Reason::PolicyDenied, 1).await;
    let by = a.judged(Outcome::Refused, Reason::PolicyDenied).await;
    assert_eq!(by, "test/not-b");
    a.heard.lock().unwrap().refusals.clear();
    let elsewhere = on_port(allow(OUT, "elsewhere", []), 1);
    a.apply(only("port", [elsewhere])).await;
    a.dial_in_vain(at).await;
    a.refused("outbound", Reason::PolicyNoRule, 1).await;
    assert_eq!(b.count("nodemesh_tunnels_open", "inbound").await, 0);
    // The port that counts is the workload's.
    let vip = (next_ip(), 80).into();
    mesh.publish(vip, &[endpoint(at, &b.identity)]);
    let there = on_port(allow(OUT, "there", []), at.port());
    a.apply(only("target port", [there])).await;
    let mut client = a.dial(vip).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    exchange(&mut client, &mut server).await;
}

#[tokio::test]
async fn of_a_service_the_endpoints_that_policy_allows_are_used() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let c = TestPod::start(&mesh, "c").await;
    let (_listener, at_b) = b.listen(&mesh).await;
    let (listener, at_c) = c.listen(&mesh).await;
    let vip = (next_ip(), 80).into();
    let endpoints = [
        labelled(at_b, &b.identity, "bad"),
        labelled(at_c, &c.identity, "good"),
    ];
    mesh.publish(vip, &endpoints);
    a.apply(members_and("not bad", deny(OUT, "bad", [app("bad")])))
        .await;
    for _ in 0..8 {
        let mut client = a.dial(vip).await;
        let (mut server, _) = within("accept", listener.accept()).await.unwrap();
        exchange(&mut client, &mut server).await;
    }
    assert!(a.heard.lock().unwrap().refusals.is_empty());
    let good = allow(OUT, "neither", [app("neither")]);
    a.apply(only("neither", [good])).await;
    a.dial_in_vain(vip).await;
    a.refused("outbound", Reason::PolicyNoRule, 1).await;
    // In audit it is as it will be, where policy leaves a choice.
    let denied = deny(OUT, "bad", [app("bad")]);
    a.apply(audit(members_and("bad", denied))).await;
    for _ in 0..8 {
        let _client = a.dial(vip).await;
        within("accept", listener.accept()).await.unwrap();
    }
    let audited = a
        .count("nodemesh_audited_outbound_total", "policy_denied")
        .await;
    assert_eq!(audited, 0);
}

#[tokio::test]
async fn a_refusal_of_the_peers_policy_is_an_answer() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let c = TestPod::start(&mesh, "c").await;
    let (_b, at_b) = b.listen(&mesh).await;
    let (_c, at_c) = c.listen(&mesh).await;
    let vip = (next_ip(), 80).into();
    let endpoints = [endpoint(at_b, &b.identity), endpoint(at_c, &c.identity)];
    mesh.publish(vip, &endpoints);
    for pod in [&b, &c] {
        pod.apply(only("nothing", [])).await;
    }
    a.dial_in_vain(vip).await;
    a.refused("outbound", Reason::PeerPolicy, 1).await;
    let refusals = |pod: &TestPod| pod.heard.lock().unwrap().refusals.len();
    within("one refusal", async {
        while refusals(&b) + refusals(&c) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(refusals(&b) + refusals(&c), 1);
    assert_eq!(a.count("nodemesh_failovers_total", "peer_policy").await, 0);
}

#[tokio::test]
async fn plain_leaves_only_where_policy_names_the_place() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let (unknown, at_unknown) = outside().await;
    let (pod, at_pod) = outside().await;
    let (backend, at_backend) = outside().await;
    mesh.publish(at_pod, &[plain(at_pod)]);
    let vip: SocketAddr = (next_ip(), 80).into();
    let key = "test/outside.test.svc.cluster.local";
    let mut of_service = plain(at_backend);
    of_service.services = vec![key.to_owned()];
    mesh.publish(vip, &[of_service]);
    for (to, reason) in [
        (at_unknown, Reason::DestinationUnknown),
        (at_pod, Reason::DestinationNotEnrolled),
        (vip, Reason::DestinationNotEnrolled),
    ] {
        a.heard.lock().unwrap().refusals.clear();
        let name = "nodemesh_refusals_outbound_total";
        let before = a.count(name, reason.code()).await;
        a.dial_in_vain(to).await;
        a.refused("outbound", reason, before + 1).await;
    }
    let places = [
        cidr(&block(at_unknown.ip())),
        cidr(&block(at_pod.ip())),
        service(key),
    ];
    a.apply(only("named", [allow(OUT, "named", places)])).await;
    for (to, listener) in [(at_unknown, unknown), (at_pod, pod), (vip, backend)] {
        let mut client = a.dial(to).await;
        let (mut server, from) = within("accept", listener.accept()).await.unwrap();
        assert_eq!(from.ip(), a.ip);
        exchange(&mut client, &mut server).await;
    }
    a.counted("nodemesh_plain_connections_total", "outbound", 3)
        .await;
    a.heard.lock().unwrap().refusals.clear();
    // Its listener has gone.
    a.dial_in_vain(at_unknown).await;
    a.refused("outbound", Reason::DestinationConnect, 1).await;
}

#[tokio::test]
async fn the_clusters_dns_is_open_and_nothing_else_of_it() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let dns = next_ip();
    let mut nothing = only("dns", []);
    nothing.resolvers = vec![octets(dns)];
    a.apply(nothing).await;
    let listener = TcpListener::bind((dns, 53)).await.unwrap();
    let mut client = a.dial((dns, 53).into()).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    exchange(&mut client, &mut server).await;
    a.dial_in_vain((dns, 54).into()).await;
    a.refused("outbound", Reason::DestinationUnknown, 1).await;
}

#[tokio::test]
async fn audit_lets_out_what_policy_would_refuse() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (member, at_member) = b.listen(&mesh).await;
    let (unknown, at_unknown) = outside().await;
    let (pod, at_pod) = outside().await;
    mesh.publish(at_pod, &[plain(at_pod)]);
    a.apply(audit(only("nothing", []))).await;
    for (to, listener, reason) in [
        (at_member, member, Reason::PolicyNoRule),
        (at_unknown, unknown, Reason::DestinationUnknown),
        (at_pod, pod, Reason::DestinationNotEnrolled),
    ] {
        let mut client = a.dial(to).await;
        let (mut server, _) = within("accept", listener.accept()).await.unwrap();
        exchange(&mut client, &mut server).await;
        a.counted("nodemesh_audited_outbound_total", reason.code(), 1)
            .await;
        a.judged(Outcome::Audited, reason).await;
    }
    assert_eq!(a.count("nodemesh_tunnels_open", "outbound").await, 1);
    // What fails, fails in audit too.
    let empty = (next_ip(), 80).into();
    mesh.publish(empty, &[]);
    a.dial_in_vain(empty).await;
    a.counted("nodemesh_refusals_outbound_total", "no_endpoint", 1)
        .await;
}

#[tokio::test]
async fn a_pod_may_always_call_itself() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let (listener, at) = a.listen(&mesh).await;
    a.apply(only("nothing", [])).await;
    let vip = (next_ip(), 80).into();
    mesh.publish(vip, &[endpoint(at, &a.identity)]);
    for to in [at, vip] {
        let mut client = a.dial(to).await;
        let (mut server, _) = within("accept", listener.accept()).await.unwrap();
        exchange(&mut client, &mut server).await;
        a.apply(only("still nothing", [])).await;
        a.apply(only("nothing", [])).await;
        exchange(&mut client, &mut server).await;
    }
}

/// A pod that calls another, or a place outside the mesh.
async fn open(mesh: &Arc<Mesh>, a: &TestPod, to: SocketAddr, at: &TcpListener) -> [TcpStream; 2] {
    mesh.introduce(a.ip, None);
    let mut client = a.dial(to).await;
    let (mut server, _) = within("accept", at.accept()).await.unwrap();
    // Its own worker learns of the accept last: what is refused before is not cut.
    exchange(&mut client, &mut server).await;
    [client, server]
}

#[tokio::test]
async fn a_policy_that_now_refuses_cuts_what_is_open() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (member, at_member) = b.listen(&mesh).await;
    let (unknown, at_unknown) = outside().await;
    let out = allow(OUT, "outside", [cidr(&block(at_unknown.ip()))]);
    a.apply(members_and("both", out)).await;
    let [mut client, mut server] = open(&mesh, &a, at_member, &member).await;
    let [mut plain_client, mut plain_server] = open(&mesh, &a, at_unknown, &unknown).await;
    let not_b = deny(OUT, "not-b", [identity(&b.identity)]);
    a.apply(members_and("one", not_b)).await;
    cut(&mut client, &mut server).await;
    cut(&mut plain_client, &mut plain_server).await;
    for reason in [Reason::PolicyDenied, Reason::DestinationUnknown] {
        a.counted("nodemesh_cut_outbound_total", reason.code(), 1)
            .await;
        a.judged(Outcome::Cut, reason).await;
    }
    assert_eq!(
        a.judged(Outcome::Cut, Reason::PolicyDenied).await,
        "test/not-b"
    );
    a.counted("nodemesh_connections_open", "outbound", 0).await;
    a.apply(members()).await;
    open(&mesh, &a, at_member, &member).await;
}

#[tokio::test]
async fn what_becomes_known_of_a_peer_cuts_what_is_open() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (member, at_member) = b.listen(&mesh).await;
    mesh.publish(at_member, &[labelled(at_member, &b.identity, "good")]);
    let (unknown, at_unknown) = outside().await;
    let policies = [
        allow(OUT, "all", []),
        allow(OUT, "plain", [cidr("127.0.0.0/8")]),
        deny(OUT, "bad", [app("bad")]),
    ];
    a.apply(only("p", policies)).await;
    let [mut client, mut server] = open(&mesh, &a, at_member, &member).await;
    let [mut plain_client, mut plain_server] = open(&mesh, &a, at_unknown, &unknown).await;
    // Both vanish from discovery, and somebody else takes the member's address.
    let mut other = labelled(at_member, &b.identity, "bad");
    other.workload_uid = "other".to_owned();
    a.send(mesh.publish_service(at_unknown, &[], None));
    a.send(mesh.publish_service(at_member, &[], None));
    a.send(mesh.publish_service(at_member, &[other], None));
    a.count("nodemesh_connections_open", "outbound").await;
    exchange(&mut client, &mut server).await;
    exchange(&mut plain_client, &mut plain_server).await;
    let bad = labelled(at_member, &b.identity, "bad");
    a.send(mesh.publish_service(at_member, &[bad], None));
    cut(&mut client, &mut server).await;
    let mut pod = plain(at_unknown);
    pod.labels = [("app".to_owned(), "bad".to_owned())].into();
    a.send(mesh.publish_service(at_unknown, &[pod], None));
    cut(&mut plain_client, &mut plain_server).await;
    a.counted("nodemesh_cut_outbound_total", "policy_denied", 2)
        .await;
}
