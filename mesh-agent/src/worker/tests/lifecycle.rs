//! Birth, renewal, adoption, replacement and end of a worker.

use std::os::fd::AsFd;
use std::time::Duration;

use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::worker::{Certificate, Drain, FdKind, Limits, Replace, Resync, to_worker::Message};
use mesh_common::{PORT_HBONE, PORT_OUTBOUND, PORT_PLAINTEXT};
use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{Mesh, Options, TestPod, next_ip, within};
use super::pki::Leaf;
use super::relay::expect_reset;

fn inheritance(pod: &TestPod) -> Vec<(i32, std::os::fd::OwnedFd)> {
    let heard = pod.heard.lock().unwrap();
    let fds = heard.fds.iter();
    fds.map(|(kind, fd)| (*kind, fd.as_fd().try_clone_to_owned().unwrap()))
        .collect()
}

async fn join(mut pod: TestPod) -> anyhow::Result<()> {
    let thread = pod.thread.take().unwrap();
    within("the worker's end", async {
        while !thread.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    thread.join().unwrap()
}

#[tokio::test]
async fn another_protocol_version_is_refused_with_both_named() {
    let mesh = Mesh::new();
    let options = Options {
        protocol_version: 77,
        ..Options::default()
    };
    let pod = TestPod::launch(&mesh, "a", next_ip(), options, Vec::new());
    pod.until("the refusal", |h| h.start_failed.is_some()).await;
    let why = pod.heard.lock().unwrap().start_failed.clone().unwrap();
    let own = format!("version {WORKER_PROTOCOL_VERSION}");
    assert!(why.contains("version 77") && why.contains(&own), "{why}");
    assert!(join(pod).await.is_err());
}

#[tokio::test]
async fn a_worker_says_what_it_has_in_order_and_hands_it_over() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let heard = pod.heard.lock().unwrap();
    assert_eq!(heard.hellos, [WORKER_PROTOCOL_VERSION]);
    assert_eq!((heard.keys, heard.requests), (1, 1));
    let listeners = &heard.listeners[0];
    for kind in [FdKind::OutboundV4, FdKind::PlaintextV4, FdKind::HboneV4] {
        assert!(listeners.contains(&kind));
    }
}

#[tokio::test]
async fn the_next_worker_takes_over_without_the_control_component() {
    let mesh = Mesh::new();
    let first = TestPod::start(&mesh, "b").await;
    let fds = inheritance(&first);
    let (ip, chain) = (first.ip, first.heard.lock().unwrap().chain.clone());
    first.send(Message::Replace(Replace { deadline_ms: 5000 }));
    first.until("the drain", |h| h.drained).await;
    join(first).await.unwrap();
    // Nobody accepts now; a caller waits in the queue.
    let mut waiting = TcpStream::connect((ip, 15006)).await.unwrap();
    let second = TestPod::launch(&mesh, "b", ip, Options::default(), fds);
    second.send(Message::Certificate(Certificate { chain }));
    second
        .until("the next is ready", |h| !h.ready.is_empty())
        .await;
    expect_reset(&mut waiting).await;
    second.refused("inbound", Reason::InboundPlaintext, 1).await;
    let heard = second.heard.lock().unwrap();
    assert_eq!((heard.keys, heard.requests), (0, 0));
}

/// A worker can be killed right after `accept`: as if here, where what was accepted is closed
/// and nothing else has been done with it.
#[tokio::test]
async fn what_a_dying_worker_has_only_just_accepted_is_reset() {
    let mesh = Mesh::new();
    let worker = TestPod::start(&mesh, "a").await;
    let (ip, fds) = (worker.ip, inheritance(&worker));
    worker.send(Message::Drain(Drain { deadline_ms: 0 }));
    join(worker).await.unwrap();
    for (kind, fd) in fds {
        let port = match FdKind::try_from(kind).unwrap() {
            FdKind::OutboundV4 => PORT_OUTBOUND,
            FdKind::PlaintextV4 => PORT_PLAINTEXT,
            _ => continue,
        };
        let listener: std::net::TcpListener = fd.into();
        let mut app = TcpStream::connect((ip, port)).await.unwrap();
        listener.set_nonblocking(false).unwrap();
        drop(listener.accept().unwrap());
        expect_reset(&mut app).await;
    }
}

#[tokio::test]
async fn a_key_without_its_certificate_asks_for_one() {
    let mesh = Mesh::new();
    let first = TestPod::start(&mesh, "b").await;
    let fds = inheritance(&first);
    let ip = first.ip;
    first.send(Message::Drain(Drain { deadline_ms: 0 }));
    join(first).await.unwrap();
    let second = TestPod::launch(&mesh, "b", ip, Options::default(), fds);
    second
        .until("the next is ready", |h| !h.ready.is_empty())
        .await;
    let heard = second.heard.lock().unwrap();
    assert_eq!((heard.keys, heard.requests), (0, 1));
}

#[tokio::test]
async fn a_certificate_of_someone_else_is_not_used() {
    let mesh = Mesh::new();
    let mut expired = Leaf::of("spiffe://cluster.local/ns/test/sa/a");
    expired.validity_s = (-100, -10);
    for leaf in [Leaf::of("spiffe://cluster.local/ns/test/sa/b"), expired] {
        let options = Options {
            leaf: Some(leaf),
            ..Options::default()
        };
        let pod = TestPod::launch(&mesh, "a", next_ip(), options, {
            // Listeners on the usual addresses would meet those of other tests.
            let donor = TestPod::start(&mesh, "a").await;
            let fds = inheritance(&donor);
            fds.into_iter()
                .filter(|(kind, _)| *kind != FdKind::PrivateKey as i32)
                .collect()
        });
        pod.until("a second try", |h| h.requests >= 2).await;
        assert!(pod.heard.lock().unwrap().ready.is_empty());
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_and_tunnels_follow() {
    let mesh = Mesh::new();
    let mut short = Leaf::of("spiffe://cluster.local/ns/test/sa/a");
    short.validity_s = (-1, 9);
    let options = Options {
        leaf: Some(short),
        ..Options::default()
    };
    let a = TestPod::start_with(&mesh, "a", options).await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut old = a.dial(at).await;
    let (mut old_server, _) = within("accept", listener.accept()).await.unwrap();
    a.until("the renewal", |h| h.ready.len() >= 2).await;
    {
        let heard = a.heard.lock().unwrap();
        assert!(heard.ready[1] > heard.ready[0]);
        assert_eq!(heard.keys, 1);
    }
    let _new = a.dial(at).await;
    within("accept", listener.accept()).await.unwrap();
    assert_eq!(b.count("nodemesh_handshakes_total", "inbound").await, 2);
    old.write_all(b"still here").await.unwrap();
    within("the old flow", old_server.read_exact(&mut [0; 10]))
        .await
        .unwrap();
    drop((old, old_server));
    b.counted("nodemesh_tunnels_open", "inbound", 1).await;
}

#[tokio::test]
async fn a_new_supervisor_is_told_everything_again() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let _app = a.dial(at).await;
    within("accept", listener.accept()).await.unwrap();
    a.send(Message::Resync(Resync {}));
    a.until("everything", |h| {
        let counts = (h.hellos.len(), h.listeners.len(), h.keys, h.asked.len());
        // Where policy and certificate come at once the worker may say twice that it is ready.
        counts == (2, 2, 2, 2) && h.ready.len() >= 2
    })
    .await;
    let heard = a.heard.lock().unwrap();
    assert_eq!(heard.asked[0], heard.asked[1]);
    assert_eq!(heard.listeners[0], heard.listeners[1]);
    assert_eq!(heard.requests, 1);
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut app = a.dial(at).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    b.send(Message::Drain(Drain {
        deadline_ms: 20_000,
    }));
    // b has told a to take its next stream elsewhere, but this one goes on.
    for _ in 0..50 {
        app.write_all(b"more").await.unwrap();
        within("more", server.read_exact(&mut [0; 4]))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!b.heard.lock().unwrap().drained);
    app.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
    b.until("the drain", |h| h.drained).await;
    join(b).await.unwrap();
}

/// What was accepted and is no flow yet, such as a caller's handshake, may become one.
#[tokio::test]
async fn a_draining_worker_waits_for_what_it_has_accepted() {
    let mesh = Mesh::new();
    let b = TestPod::start(&mesh, "b").await;
    let caller = TcpStream::connect((b.ip, PORT_HBONE)).await.unwrap();
    b.counted("nodemesh_accepted_open", "", 1).await;
    b.send(Message::Replace(Replace {
        deadline_ms: 20_000,
    }));
    b.send(Message::Resync(Resync {}));
    b.counted("nodemesh_accepted_open", "", 1).await;
    assert!(!b.heard.lock().unwrap().drained);
    drop(caller);
    b.until("the drain", |h| h.drained).await;
    join(b).await.unwrap();
}

#[tokio::test]
async fn what_is_open_at_the_deadline_is_reset_not_ended() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut app = a.dial(at).await;
    let (mut server, _) = within("accept", listener.accept()).await.unwrap();
    b.send(Message::Drain(Drain { deadline_ms: 100 }));
    expect_reset(&mut server).await;
    expect_reset(&mut app).await;
    b.until("the drain", |h| h.drained).await;
    join(b).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let mesh = Mesh::new();
    let options = Options {
        limits: Limits {
            connections: 2,
            ..Limits::default()
        },
        ..Options::default()
    };
    let a = TestPod::start_with(&mesh, "a", options).await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push((a.dial(at).await, within("accept", listener.accept()).await));
    }
    a.dial_in_vain(at).await;
    a.refused("outbound", Reason::ConnectionLimit, 1).await;
    held.clear();
    a.counted("nodemesh_connections_open", "outbound", 0).await;
    let _fits = a.dial(at).await;
    within("accept", listener.accept()).await.unwrap();
}

#[tokio::test]
async fn refusals_are_counted_exactly_and_told_sparingly() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let to = (next_ip(), 80).into();
    for _ in 0..200 {
        a.dial_in_vain(to).await;
    }
    a.refused("outbound", Reason::DestinationUnknown, 200).await;
    let told = a.heard.lock().unwrap().refusals.len();
    assert!((1..150).contains(&told), "{told}");
    let asked = a.heard.lock().unwrap().asked.len();
    assert!(asked < 50, "{asked} questions for one unknown destination");
    tokio::time::sleep(Duration::from_millis(300)).await;
    a.dial_in_vain(to).await;
    a.until("one more", |h| h.refusals.len() > told).await;
    let heard = a.heard.lock().unwrap();
    let suppressed: u32 = heard.refusals.iter().map(|r| r.suppressed).sum();
    assert_eq!(suppressed as usize + heard.refusals.len(), 201);
}
