//! What an idle flow costs.

use std::fs;
use std::process::Command;

use nix::sys::prctl;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Mesh, TestPod, within};
use crate::worker::heap;

/// Memory that is this process's alone, whoever else runs. Pages of the program's file are not
/// counted: they turn from shared to private when another test of the same binary ends.
fn anonymous_kib() -> u64 {
    // As a worker does when it comes to rest.
    heap::give_back();
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let mut lines = rollup.lines();
    let line = lines.find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Memory is the whole process's, so the measurement has one of its own.
#[test]
fn idle_flows_hold_little_memory() {
    let itself = std::env::current_exe().unwrap();
    let run = Command::new(itself)
        .args([
            "--exact",
            "worker::tests::memory::alone",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}");
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "run by idle_flows_hold_little_memory, alone in its process"]
async fn alone() {
    // Where the kernel hands out memory by 2 MiB, what is held shows only to the next 2 MiB.
    prctl::set_thp_disable(true).unwrap();
    let mesh = Mesh::new();
    let a = TestPod::start(&mesh, "a").await;
    let b = TestPod::start(&mesh, "b").await;
    let (listener, at) = b.listen(&mesh).await;
    let mut flows = Vec::with_capacity(4096);
    let mut before = 0;
    for n in 0..2200 {
        if n == 200 {
            before = anonymous_kib();
        }
        let mut client = a.dial(at).await;
        let (mut server, _) = within("accept", listener.accept()).await.unwrap();
        client.write_all(&[1; 20_000]).await.unwrap();
        within("bytes", server.read_exact(&mut [0; 20_000]))
            .await
            .unwrap();
        server.write_all(&[1; 20_000]).await.unwrap();
        within("bytes", client.read_exact(&mut [0; 20_000]))
            .await
            .unwrap();
        flows.push((client, server));
    }
    let after = anonymous_kib();
    let each = (after - before) * 1024 / 2000;
    println!("{before} KiB, {after} KiB: {each} bytes for a flow, both workers and both ends");
    assert!(each < 10 * 1024, "{each}");
    assert_eq!(a.count("nodemesh_buffered_bytes", "").await, 0);
    assert_eq!(b.count("nodemesh_buffered_bytes", "").await, 0);
}
