//! Readers that do not read hold up nobody else.

use std::io::ErrorKind;
use std::time::Duration;

use mesh_api::worker::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Mesh, Options, TestPod, within};
use super::relay::{expect_end, fill};

#[tokio::test]
async fn sixty_four_stalled_receivers_hold_up_nobody() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut stalled = Vec::new();
    for _ in 0..64 {
        let client = a.dial(at).await;
        let (server, _) = within("accept", listener.accept()).await.unwrap();
        stalled.push((client, server));
    }
    let fills = stalled.iter().map(|(client, _)| fill(client));
    let written = within("stalling", futures_util::future::join_all(fills)).await;
    assert!(written.iter().all(|n| *n > 1 << 20), "{written:?}");
    // And in the other direction.
    let fills = stalled.iter().map(|(_, server)| fill(server));
    within("stalling", futures_util::future::join_all(fills)).await;
    let mut healthy = a.dial(at).await;
    let (mut server, _) = within("a new one beside them", listener.accept())
        .await
        .unwrap();
    let block = vec![3; 8 << 20];
    let (sent, ()) = tokio::join!(
        async {
            healthy.write_all(&block).await.unwrap();
            healthy.shutdown().await
        },
        expect_end(&mut server, &block)
    );
    sent.unwrap();
    assert_eq!(a.count("nodemesh_tunnels_open", "outbound").await, 1);
    // What waits is a window for each, and it is given back with the flows.
    let waiting = b.count("nodemesh_buffered_bytes", "").await;
    assert!((32 << 20..96 << 20).contains(&waiting), "{waiting}");
    drop(stalled);
    for pod in [&a, &b] {
        pod.counted("nodemesh_buffered_bytes", "", 0).await;
    }
}

#[tokio::test]
async fn a_worker_that_holds_too_much_resets_who_does_not_read() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let options = Options {
        limits: Limits {
            buffered_mib: 4,
            ..Limits::default()
        },
        ..Options::default()
    };
    let b = TestPod::start_with(&mesh, "b", options).await;
    let (listener, at) = b.listen(&mesh).await;
    let mut healthy = a.dial(at).await;
    let (mut healthy_server, _) = within("accept", listener.accept()).await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..16 {
        let client = a.dial(at).await;
        let (server, _) = within("accept", listener.accept()).await.unwrap();
        let writer = tokio::spawn(async move {
            let mut client = client;
            client.write_all(&vec![1; 16 << 20]).await
        });
        stalled.push((server, writer));
    }
    within("shedding", async {
        while b.count("nodemesh_flows_shed_total", "").await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(b.count("nodemesh_buffered_bytes", "").await <= 6 << 20);
    healthy.write_all(b"hello").await.unwrap();
    within("hello", healthy_server.read_exact(&mut [0; 5]))
        .await
        .unwrap();
    let shed = b.count("nodemesh_flows_shed_total", "").await;
    let mut reset = 0;
    for (_, writer) in stalled {
        if writer.is_finished() {
            let error = writer.await.unwrap().expect_err("a reset was due");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            reset += 1;
        } else {
            writer.abort();
        }
    }
    assert!(reset > 0 && reset <= shed, "{reset} of {shed}");
}

#[tokio::test]
async fn small_messages_that_nobody_reads_are_not_the_tunnels_end() {
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut flows = Vec::new();
    for _ in 0..16 {
        let client = a.dial(at).await;
        client.set_nodelay(true).unwrap();
        let (server, _) = within("accept", listener.accept()).await.unwrap();
        flows.push((client, server));
    }
    let messages = 20_000;
    for (client, _) in &mut flows {
        for _ in 0..messages {
            within("a small write", client.write_all(b"0123456789"))
                .await
                .unwrap();
        }
    }
    for (client, server) in &mut flows {
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        within("the messages", server.read_to_end(&mut all))
            .await
            .unwrap();
        assert_eq!(all.len(), messages * 10);
    }
    assert_eq!(b.count("nodemesh_tunnels_open", "inbound").await, 1);
}
