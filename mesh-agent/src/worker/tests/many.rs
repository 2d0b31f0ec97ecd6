//! A change of policy with many flows open.

use std::time::{Duration, Instant};

use mesh_api::policy::Direction;

use super::harness::{Mesh, TestPod, within};
use super::policies::{deny, identity, members, members_and};
use super::relay::expect_reset;

#[tokio::test]
async fn two_thousand_flows_are_decided_anew_and_cut_within_a_second() {
    const FLOWS: usize = 2000;
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut flows = Vec::with_capacity(FLOWS);
    for _ in 0..FLOWS {
        let client = a.dial(at).await;
        let (server, _) = within("accept", listener.accept()).await.unwrap();
        flows.push((client, server));
    }
    b.counted("nodemesh_connections_total", "inbound", FLOWS as u64)
        .await;
    // A change that refuses none of them: each decides anew before metrics are answered.
    let mut same = members();
    same.version = "same".to_owned();
    let since = Instant::now();
    b.apply(same).await;
    b.count("nodemesh_connections_open", "inbound").await;
    println!("{FLOWS} flows decided anew in {:?}", since.elapsed());
    let denied = deny(Direction::Inbound, "not-a", [identity(&a.identity)]);
    let since = Instant::now();
    b.apply(members_and("denied", denied)).await;
    for (client, server) in &mut flows {
        expect_reset(client).await;
        expect_reset(server).await;
    }
    let took = since.elapsed();
    println!("{FLOWS} flows cut in {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    b.counted("nodemesh_cut_inbound_total", "policy_denied", FLOWS as u64)
        .await;
    for (pod, direction) in [(&a, "outbound"), (&b, "inbound")] {
        pod.counted("nodemesh_connections_open", direction, 0).await;
    }
}
