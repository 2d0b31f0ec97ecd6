//! Which endpoints connections go to, over changes of discovery's answer.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_api::policy::{OutlierDetection, Traffic, traffic::Locality};
use mesh_api::worker::to_worker::Message;
use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::failover::{call, round_robin};
use super::harness::{Mesh, TestPod, endpoint, next_ip, within};
use super::peers::PEER;
use super::pool::serve_echo;

/// Tells the worker of a change, and returns when it has taken it in.
async fn push(pod: &TestPod, change: Message) {
    pod.send(change);
    // Messages are handled in order.
    pod.count("nodemesh_connections_total", "outbound").await;
}

async fn connections(pod: &TestPod) -> u64 {
    pod.count("nodemesh_connections_total", "inbound").await
}

#[tokio::test]
async fn an_endpoint_that_is_slow_gets_little() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let (b, c) = (
        TestPod::start(&mesh, "b").await,
        TestPod::start(&mesh, "c").await,
    );
    let (slow, at_b) = b.listen(&mesh).await;
    let (fast, at_c) = c.listen(&mesh).await;
    let serve_one = |listener: TcpListener, pause: Duration| async move {
        loop {
            let (mut app, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                let _gone = app.write_all(b"!").await;
            });
        }
    };
    tokio::spawn(serve_one(slow, Duration::from_secs(5)));
    tokio::spawn(serve_one(fast, Duration::ZERO));
    let service = SocketAddr::new(next_ip(), 80);
    let endpoints = [endpoint(at_b, &b.identity), endpoint(at_c, &c.identity)];
    mesh.publish(service, &endpoints);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut app = a.dial(service).await;
        // The next comes when this one is answered, or has shown that it takes its time.
        let answered = tokio::time::timeout(Duration::from_millis(50), app.read_u8()).await;
        if answered.is_err() {
            waiting.spawn(async move { app.read_u8().await });
        }
    }
    let (to_slow, to_fast) = (connections(&b).await, connections(&c).await);
    println!("of 100 calls the slow endpoint got {to_slow}, the fast one {to_fast}");
    assert_eq!(to_slow + to_fast, 100);
    assert!((1..20).contains(&to_slow), "{to_slow}");
}

#[tokio::test]
async fn a_terminating_endpoint_finishes_what_it_has_and_gets_nothing_new() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let (b, c) = (
        TestPod::start(&mesh, "b").await,
        TestPod::start(&mesh, "c").await,
    );
    let (in_b, at_b) = b.listen(&mesh).await;
    let (in_c, at_c) = c.listen(&mesh).await;
    tokio::spawn(serve_echo(in_b));
    tokio::spawn(serve_echo(in_c));
    let service = SocketAddr::new(next_ip(), 80);
    let (to_b, to_c) = (endpoint(at_b, &b.identity), endpoint(at_c, &c.identity));
    mesh.publish_service(service, &[to_b, to_c.clone()], Some(round_robin()));
    // Round robin: one each.
    let mut open = [a.dial(service).await, a.dial(service).await];
    for app in &mut open {
        app.write_all(b"1").await.unwrap();
        within("the echo", app.read_u8()).await.unwrap();
    }
    assert_eq!((connections(&b).await, connections(&c).await), (1, 1));
    push(
        &a,
        mesh.publish_service(service, &[to_c], Some(round_robin())),
    )
    .await;
    for _ in 0..6 {
        call(&a, service).await;
    }
    assert_eq!((connections(&b).await, connections(&c).await), (1, 7));
    for app in &mut open {
        app.write_all(b"2").await.unwrap();
        within("the echo", app.read_u8()).await.unwrap();
        app.shutdown().await.unwrap();
        let end = within("the end", app.read_to_end(&mut Vec::new())).await;
        assert_eq!(end.unwrap(), 0);
    }
    assert_eq!(a.count("nodemesh_tunnels_open", "outbound").await, 2);
}

#[tokio::test]
async fn unhealthy_and_far_endpoints_are_for_when_there_is_no_other() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let (b, c) = (
        TestPod::start(&mesh, "b").await,
        TestPod::start(&mesh, "c").await,
    );
    let (in_b, at_b) = b.listen(&mesh).await;
    let (in_c, at_c) = c.listen(&mesh).await;
    tokio::spawn(serve_echo(in_b));
    tokio::spawn(serve_echo(in_c));
    let service = SocketAddr::new(next_ip(), 80);
    let nearest = Traffic {
        locality: Locality::Nearest.into(),
        ..Traffic::default()
    };
    // Distance and health of b, then of c, and who gets the connections.
    let mut expected = (0, 0);
    for ((far_b, ill_b), (far_c, ill_c), b_gets_them) in [
        ((0, false), (3, false), true),
        ((0, true), (3, false), false),
        ((0, true), (3, true), true),
        ((2, false), (1, false), false),
    ] {
        let mut to_b = endpoint(at_b, &b.identity);
        (to_b.distance, to_b.unhealthy) = (far_b, ill_b);
        let mut to_c = endpoint(at_c, &c.identity);
        (to_c.distance, to_c.unhealthy) = (far_c, ill_c);
        push(
            &a,
            mesh.publish_service(service, &[to_b, to_c], Some(nearest.clone())),
        )
        .await;
        for _ in 0..4 {
            call(&a, service).await;
        }
        *(if b_gets_them {
            &mut expected.0
        } else {
            &mut expected.1
        }) += 4;
        assert_eq!((connections(&b).await, connections(&c).await), expected);
    }
}

#[tokio::test]
async fn an_endpoint_that_keeps_failing_is_ejected_also_over_changes_of_the_service() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let c = TestPod::start(&mesh, "c").await;
    let (in_c, at_c) = c.listen(&mesh).await;
    tokio::spawn(serve_echo(in_c));
    let service = SocketAddr::new(next_ip(), 80);
    let traffic = Traffic {
        outliers: Some(OutlierDetection {
            consecutive_failures: 3,
            base_ejection_ms: 60_000,
            max_ejection_ms: 60_000,
            max_ejected_percent: 50,
        }),
        ..round_robin()
    };
    let mut gone = endpoint((next_ip(), 80).into(), PEER);
    let to_c = endpoint(at_c, &c.identity);
    for round in 0..5 {
        // Another label each time, and the order turned round: the endpoints stay the same.
        gone.labels.insert("round".to_owned(), round.to_string());
        let mut endpoints = [gone.clone(), to_c.clone()];
        endpoints.rotate_left(round % 2);
        push(
            &a,
            mesh.publish_service(service, &endpoints, Some(traffic.clone())),
        )
        .await;
        for _ in 0..4 {
            call(&a, service).await;
        }
    }
    let failovers = a.count("nodemesh_failovers_total", "tunnel_connect").await;
    let ejections = a.count("nodemesh_outlier_ejections_total", "").await;
    assert_eq!((failovers, ejections), (3, 1));
    // When nothing else is left it is tried all the same.
    push(&a, mesh.publish_service(service, &[gone], Some(traffic))).await;
    a.dial_in_vain(service).await;
    a.refused("outbound", Reason::TunnelConnect, 1).await;
}
