//! The destination's worker decides on what comes in, by tunnel and in plain, as long as it is
//! open.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use mesh_api::policy::Direction;
use mesh_api::worker::{
    PodPolicy, Replace, SourceInfo, change::Change, refusal::Outcome, to_worker::Message,
};
use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Mesh, TestPod, next_ip, octets, within};
use super::peers::{PEER, connect, dial_h2, status_of};
use super::policies::{
    allow, app, audit, cidr, deny, identity, members, members_and, on_port, only, permissive,
    service,
};
use super::relay::expect_reset;

const IN: Direction = Direction::Inbound;

/// Where peers that are no workers come from.
fn loopback() -> IpAddr {
    [127, 0, 0, 1].into()
}

/// What discovery says of a peer.
fn source(ip: IpAddr, identity: &str, app: &str) -> SourceInfo {
    SourceInfo {
        address: octets(ip),
        known: true,
        identity: identity.to_owned(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        services: vec!["test/web.test.svc.cluster.local".to_owned()],
        hbone: true,
    }
}

/// A pod with a server, and what a peer is answered under each policy.
async fn answered(
    mesh: &Arc<Mesh>,
    cases: impl IntoIterator<Item = (PodPolicy, StatusCode)>,
) -> (TestPod, SocketAddr) {
    let pod = TestPod::start(mesh, "b").await;
    let (listener, at) = pod.listen(mesh).await;
    let mut sender = dial_h2(mesh, pod.hbone()).await;
    for (policy, status) in cases {
        let version = policy.version.clone();
        pod.apply(policy).await;
        let answer = status_of(&mut sender, connect(&at.to_string())).await;
        assert_eq!(answer, status, "{version}");
    }
    drop(listener);
    (pod, at)
}

#[tokio::test]
async fn members_are_judged_by_what_they_prove() {
    let mesh = Mesh::new();
    // Nobody says who the peer is: it is not asked for.
    mesh.introduce(loopback(), None);
    let other = "spiffe://cluster.local/ns/test/sa/other";
    let cases = [
        (only("nothing", []), StatusCode::UNAUTHORIZED),
        (
            only("it", [allow(IN, "it", [identity(PEER)])]),
            StatusCode::OK,
        ),
        (
            only("else", [allow(IN, "else", [identity(other)])]),
            StatusCode::UNAUTHORIZED,
        ),
        (
            only("port", [on_port(allow(IN, "port", []), 1)]),
            StatusCode::UNAUTHORIZED,
        ),
        (
            only("cidr", [allow(IN, "cidr", [cidr("127.0.0.0/8")])]),
            StatusCode::OK,
        ),
    ];
    let before = Instant::now();
    let (pod, _) = answered(&mesh, cases).await;
    assert!(before.elapsed() < Duration::from_secs(4));
    pod.refused("inbound", Reason::PolicyNoRule, 3).await;
}

#[tokio::test]
async fn a_denial_names_its_policy() {
    let mesh = Mesh::new();
    let denied = members_and("deny", deny(IN, "not-it", [identity(PEER)]));
    let (pod, at) = answered(&mesh, [(denied, StatusCode::UNAUTHORIZED)]).await;
    pod.refused("inbound", Reason::PolicyDenied, 1).await;
    let by = pod.judged(Outcome::Refused, Reason::PolicyDenied).await;
    assert_eq!(by, "test/not-it");
    let heard = pod.heard.lock().unwrap();
    let refusal = &heard.refusals[0];
    assert_eq!(refusal.peer_identity, PEER);
    assert_eq!(refusal.destination, at.to_string());
}

#[tokio::test]
async fn labels_and_services_are_what_discovery_says() {
    let mesh = Mesh::new();
    mesh.introduce(loopback(), Some(source(loopback(), PEER, "good")));
    let web = service("test/web.test.svc.cluster.local");
    let cases = [
        (
            only("good", [allow(IN, "good", [app("good")])]),
            StatusCode::OK,
        ),
        (
            only("bad", [allow(IN, "bad", [app("bad")])]),
            StatusCode::UNAUTHORIZED,
        ),
        (
            members_and("deny", deny(IN, "deny", [app("good")])),
            StatusCode::UNAUTHORIZED,
        ),
        (only("web", [allow(IN, "web", [web])]), StatusCode::OK),
    ];
    let (pod, _) = answered(&mesh, cases).await;
    let asked = pod.heard.lock().unwrap().asked_who.len();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn who_is_not_known_in_time_is_refused() {
    let silent = async {
        let mesh = Mesh::new();
        mesh.introduce(loopback(), None);
        let asks = members_and("asks", deny(IN, "bad", [app("bad")]));
        let (pod, _) = answered(&mesh, [(asks, StatusCode::SERVICE_UNAVAILABLE)]).await;
        pod.refused("inbound", Reason::SourceUnresolved, 1).await;
    };
    let impostor = async {
        let mesh = Mesh::new();
        let other = "spiffe://cluster.local/ns/test/sa/other";
        mesh.introduce(loopback(), Some(source(loopback(), other, "good")));
        let asks = only("asks", [allow(IN, "good", [app("good")])]);
        let (pod, _) = answered(&mesh, [(asks, StatusCode::SERVICE_UNAVAILABLE)]).await;
        pod.refused("inbound", Reason::SourceUnresolved, 1).await;
    };
    let late = async {
        let mesh = Mesh::new();
        let pod = TestPod::start(&mesh, "b").await;
        let (_listener, at) = pod.listen(&mesh).await;
        pod.apply(only("asks", [allow(IN, "good", [app("good")])]))
            .await;
        let mut sender = dial_h2(&mesh, pod.hbone()).await;
        let request = connect(&at.to_string());
        let answer = tokio::spawn(async move { status_of(&mut sender, request).await });
        pod.until("the question", |heard| !heard.asked_who.is_empty())
            .await;
        pod.change([Change::Source(source(loopback(), PEER, "good"))]);
        assert_eq!(answer.await.unwrap(), StatusCode::OK);
    };
    tokio::join!(silent, impostor, late);
}

#[tokio::test]
async fn audit_lets_through_and_tells() {
    let mesh = Mesh::new();
    let denied = audit(members_and("deny", deny(IN, "it", [identity(PEER)])));
    let (pod, _) = answered(&mesh, [(denied, StatusCode::OK)]).await;
    pod.counted("nodemesh_audited_inbound_total", "policy_denied", 1)
        .await;
    let by = pod.judged(Outcome::Audited, Reason::PolicyDenied).await;
    assert_eq!(by, "test/it");
    let refused = pod
        .count("nodemesh_refusals_inbound_total", "policy_denied")
        .await;
    assert_eq!(refused, 0);
}

/// Two pods, a server in the second, a flow between them.
struct Flow {
    mesh: Arc<Mesh>,
    a: TestPod,
    b: TestPod,
    listener: TcpListener,
    at: SocketAddr,
    client: TcpStream,
    server: TcpStream,
}

async fn flow() -> Flow {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    mesh.introduce(a.ip, Some(source(a.ip, &a.identity, "good")));
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let client = a.dial(at).await;
    let (server, _) = within("accept", listener.accept()).await.unwrap();
    Flow {
        mesh,
        a,
        b,
        listener,
        at,
        client,
        server,
    }
}

/// Both ends are reset, and within a second.
pub(super) async fn cut(client: &mut TcpStream, server: &mut TcpStream) {
    let since = Instant::now();
    expect_reset(client).await;
    expect_reset(server).await;
    let took = since.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_policy_that_now_refuses_cuts_what_is_open() {
    let mut f = flow().await;
    let only_good = allow(IN, "good", [app("good")]);
    f.b.apply(only("still", [only_good])).await;
    f.client.write_all(b"still here").await.unwrap();
    within("still here", f.server.read_exact(&mut [0; 10]))
        .await
        .unwrap();
    let denied = deny(IN, "not-a", [identity(&f.a.identity)]);
    f.b.apply(members_and("denied", denied)).await;
    cut(&mut f.client, &mut f.server).await;
    f.b.counted("nodemesh_cut_inbound_total", "policy_denied", 1)
        .await;
    let by = f.b.judged(Outcome::Cut, Reason::PolicyDenied).await;
    assert_eq!(by, "test/not-a");
    f.b.counted("nodemesh_connections_open", "inbound", 0).await;
    // And back: nothing of it stays.
    f.b.apply(members()).await;
    let _again = f.a.dial(f.at).await;
    within("accept", f.listener.accept()).await.unwrap();
}

#[tokio::test]
async fn what_becomes_known_of_a_peer_cuts_what_is_open() {
    let mut f = flow().await;
    let denied = deny(IN, "bad", [app("bad")]);
    f.b.apply(members_and("denied", denied)).await;
    // Who has vanished from discovery stays what it was; so does who is replaced there.
    let gone = SourceInfo {
        address: octets(f.a.ip),
        ..SourceInfo::default()
    };
    let other = source(f.a.ip, PEER, "bad");
    f.b.change([Change::Source(gone)]);
    f.b.change([Change::Source(other)]);
    f.b.count("nodemesh_connections_open", "inbound").await;
    f.client.write_all(b"still here").await.unwrap();
    within("still here", f.server.read_exact(&mut [0; 10]))
        .await
        .unwrap();
    let bad = source(f.a.ip, &f.a.identity, "bad");
    f.b.change([Change::Source(bad)]);
    cut(&mut f.client, &mut f.server).await;
    assert_eq!(
        f.b.judged(Outcome::Cut, Reason::PolicyDenied).await,
        "test/bad"
    );
    drop(f.mesh);
}

#[tokio::test]
async fn a_draining_worker_still_cuts() {
    let mut f = flow().await;
    f.b.send(Message::Replace(Replace {
        deadline_ms: 60_000,
    }));
    f.b.change([Change::Policy(only("nothing", []))]);
    cut(&mut f.client, &mut f.server).await;
    f.b.until("the drain", |heard| heard.drained).await;
}

#[tokio::test]
async fn plaintext_is_taken_where_policy_names_its_place() {
    let mesh = Mesh::new();
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let (here, there) = (next_ip(), next_ip());
    let named = |version| only(version, [allow(IN, "here", [cidr(&format!("{here}/32"))])]);
    b.apply(permissive(named("permissive"))).await;
    let mut client = b.call_plain(here, at).await.unwrap();
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    assert_eq!(*b.labels.lock().unwrap(), [client.local_addr().unwrap()]);
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    let mut said = Vec::new();
    within("ping", server.read_to_end(&mut said)).await.unwrap();
    assert_eq!(said, b"ping");
    server.write_all(b"pong").await.unwrap();
    within("pong", client.read_exact(&mut [0; 4]))
        .await
        .unwrap();
    for (label, bytes) in [("inbound_received", 4), ("inbound_sent", 4)] {
        b.counted("nodemesh_bytes_total", label, bytes).await;
    }
    b.counted("nodemesh_plain_connections_total", "inbound", 1)
        .await;
    // Its place is not named.
    in_vain(&b, there, at).await;
    b.refused("inbound", Reason::PolicyNoRule, 1).await;
    // Not while mutual TLS is asked for: that cuts what is open, too.
    b.heard.lock().unwrap().refusals.clear();
    b.apply(named("strict")).await;
    expect_reset(&mut client).await;
    b.counted("nodemesh_cut_inbound_total", "inbound_plaintext", 1)
        .await;
    b.judged(Outcome::Cut, Reason::InboundPlaintext).await;
    in_vain(&b, here, at).await;
    b.refused("inbound", Reason::InboundPlaintext, 1).await;
    // Audit takes it from anywhere.
    b.apply(audit(named("strict"))).await;
    let _client = b.call_plain(there, at).await.unwrap();
    within("accept", listener.accept()).await.unwrap();
    b.counted("nodemesh_audited_inbound_total", "inbound_plaintext", 1)
        .await;
}

async fn in_vain(pod: &TestPod, from: IpAddr, to: SocketAddr) {
    if let Ok(mut stream) = pod.call_plain(from, to).await {
        expect_reset(&mut stream).await;
    }
}

#[tokio::test]
async fn a_pod_outside_the_mesh_is_who_discovery_says() {
    let mesh = Mesh::new();
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let [good, bad, nobody, silent] = [(); 4].map(|()| next_ip());
    mesh.introduce(good, Some(source(good, PEER, "good")));
    mesh.introduce(bad, Some(source(bad, PEER, "bad")));
    mesh.introduce(silent, None);
    let all = || allow(IN, "all", [cidr("127.0.0.0/8")]);
    let policy = only("p", [all(), deny(IN, "bad", [app("bad")])]);
    b.apply(permissive(policy)).await;
    for from in [good, nobody] {
        let _client = b.call_plain(from, at).await.unwrap();
        within("accept", listener.accept()).await.unwrap();
    }
    in_vain(&b, bad, at).await;
    b.refused("inbound", Reason::PolicyDenied, 1).await;
    b.heard.lock().unwrap().refusals.clear();
    in_vain(&b, silent, at).await;
    b.refused("inbound", Reason::SourceUnresolved, 1).await;
    // Who turns out to be another is cut.
    let mut client = b.call_plain(good, at).await.unwrap();
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    b.change([Change::Source(source(good, PEER, "bad"))]);
    cut(&mut client, &mut server).await;
}
