//! What the supervisor sends takes effect a batch at a time.

use mesh_api::policy::Direction;
use mesh_api::worker::{
    Change, Changes, Destination, PodPolicy, Resync, change, refusal::Outcome, to_worker::Message,
};
use mesh_core::reason::Reason;
use tokio::io::AsyncReadExt;

use super::harness::{Mesh, Options, TestPod, connect_in_vain, next_ip, octets, within};
use super::policies::{allow, cidr, deny, members, only, permissive};

fn part(changes: impl IntoIterator<Item = change::Change>, more: bool) -> Message {
    let changes = changes.into_iter().map(|change| Change {
        change: Some(change),
    });
    Message::Changes(Changes {
        changes: changes.collect(),
        more,
    })
}

#[tokio::test]
async fn without_a_policy_a_worker_is_not_ready_and_refuses() {
    let mesh = Mesh::new();
    let options = Options {
        policy: None,
        ..Options::default()
    };
    let b = TestPod::begin(&mesh, "b", options);
    connect_in_vain((b.ip, 15006).into()).await;
    b.refused("inbound", Reason::PolicyMissing, 1).await;
    assert!(b.heard.lock().unwrap().ready.is_empty());
    b.apply(members()).await;
    b.until("the worker is ready", |heard| !heard.ready.is_empty())
        .await;
    b.heard.lock().unwrap().refusals.clear();
    connect_in_vain((b.ip, 15006).into()).await;
    b.refused("inbound", Reason::InboundPlaintext, 1).await;
}

#[tokio::test]
async fn a_flow_waits_for_the_policy_that_is_on_its_way() {
    let mesh = Mesh::new();
    let options = Options {
        policy: None,
        ..Options::default()
    };
    let b = TestPod::begin(&mesh, "b", options);
    let (listener, at) = b.listen(&mesh).await;
    let client = b.call_plain(next_ip(), at).await.unwrap();
    let policy = only(
        "first",
        [allow(Direction::Inbound, "all", [cidr("0.0.0.0/0")])],
    );
    b.apply(permissive(policy)).await;
    within("accept", listener.accept()).await.unwrap();
    drop(client);
    assert!(b.heard.lock().unwrap().refusals.is_empty());
}

#[tokio::test]
async fn a_batch_takes_effect_with_its_last_message_and_parts_are_joined() {
    let mesh = Mesh::new();
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let everywhere = || [cidr("0.0.0.0/0")];
    let open = only("open", [allow(Direction::Inbound, "all", everywhere())]);
    b.apply(permissive(open)).await;
    let (here, there) = (next_ip(), next_ip());
    let mut old = b.call_plain(here, at).await.unwrap();
    let (_old_server, _) = within("accept", listener.accept()).await.unwrap();
    // One part allows, the other denies: neither holds before both are there.
    let block = format!("{here}/32");
    let parts = [
        permissive(only(
            "new",
            [allow(Direction::Inbound, "all", everywhere())],
        )),
        only("new", [deny(Direction::Inbound, "here", [cidr(&block)])]),
    ];
    for policy in parts.map(change::Change::Policy) {
        b.send(part([policy], true));
    }
    // The answer says that the parts were taken in.
    b.count("nodemesh_connections_open", "inbound").await;
    let _new = b.call_plain(here, at).await.unwrap();
    within("accept", listener.accept()).await.unwrap();
    b.send(part([], false));
    super::relay::expect_reset(&mut old).await;
    assert_eq!(
        b.judged(Outcome::Cut, Reason::PolicyDenied).await,
        "test/here"
    );
    let _allowed = b.call_plain(there, at).await.unwrap();
    within("accept", listener.accept()).await.unwrap();
    let applied = b.heard.lock().unwrap().applied.clone();
    assert_eq!(applied, ["members", "open", "new"]);
}

#[tokio::test]
async fn a_policy_that_can_not_be_read_leaves_the_one_before_it() {
    let mesh = Mesh::new();
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut good = allow(Direction::Inbound, "all", [cidr("0.0.0.0/0")]);
    b.apply(permissive(only("good", [good.clone()]))).await;
    good.direction = 77;
    let mut resolver = members();
    resolver.resolvers = vec![vec![1, 2, 3]];
    let versions = [
        PodPolicy {
            version: "one".to_owned(),
            ..PodPolicy::default()
        },
        PodPolicy::default(),
    ];
    for (n, unreadable) in [vec![only("bad", [good])], vec![resolver], versions.to_vec()]
        .into_iter()
        .enumerate()
    {
        b.change(unreadable.into_iter().map(change::Change::Policy));
        b.counted("nodemesh_policies_unreadable_total", "", n as u64 + 1)
            .await;
    }
    let mut client = b.call_plain(next_ip(), at).await.unwrap();
    let (server, _) = within("accept", listener.accept()).await.unwrap();
    drop(server);
    within("the end", client.read(&mut [0; 1])).await.unwrap();
    let applied = b.heard.lock().unwrap().applied.clone();
    assert_eq!(applied, ["members", "good"]);
}

#[tokio::test]
async fn a_new_supervisor_hears_what_is_in_force_and_half_a_batch_is_forgotten() {
    let mesh = Mesh::new();
    let b = TestPod::start(&mesh, "b").await;
    let half = only("half", []);
    b.send(part([change::Change::Policy(half)], true));
    b.send(Message::Resync(Resync {}));
    b.until("everything again", |heard| {
        heard.applied == ["members", "members"] && heard.ready.len() == 2
    })
    .await;
    let somewhere = Destination {
        address: octets(next_ip()),
        port: 80,
        ..Destination::default()
    };
    b.send(part([change::Change::Destination(somewhere)], false));
    let (listener, at) = b.listen(&mesh).await;
    let a = TestPod::start(&mesh, "a").await;
    let _flow = a.dial(at).await;
    within("accept", listener.accept()).await.unwrap();
    assert_eq!(b.heard.lock().unwrap().applied.len(), 2);
}
