//! What a pod's app does to its own worker.

use std::fs;

use mesh_lab::aggressor::Load;
use mesh_lab::aggressor::stage::NOISY;

use crate::Stage;

/// MiB that a worker may hold whatever its app leaves unread: what it buffers, and as much again
/// for everything else.
const MOST_MIB: u64 = 768;

#[test]
fn streams_requests_and_churn_leave_the_victim_its_share() {
    let stage = Stage::new();
    for (load, at_once) in [
        (Load::BulkStreams, 8),
        (Load::SmallRequests, 32),
        (Load::Churn, 16),
    ] {
        let achieved = stage.load(load, at_once);
        assert!(achieved.done > 0, "{achieved:?}");
    }
}

#[test]
fn idle_connections_and_unread_data_stay_within_the_workers_memory() {
    let stage = Stage::new();
    for (load, at_once) in [(Load::IdleConnections, 1_000), (Load::UnreadData, 200)] {
        let achieved = stage.load(load, at_once);
        assert!(achieved.done >= at_once as u64, "{achieved:?}");
        for name in ["client", "server"] {
            let pod = stage.pod(NOISY, name);
            let pid = stage.lab.agent(pod.node()).worker_pid(pod).unwrap();
            let most = peak_mib(pid);
            assert!(most < MOST_MIB, "the worker of {name} held {most} MiB");
        }
    }
}

#[test]
fn destinations_that_nobody_knows_are_refused_and_counted() {
    let stage = Stage::new();
    let before = stage.refused("client", "destination_unknown");
    let achieved = stage.load(Load::Lookups, 8);
    assert!(achieved.refused > 0, "{achieved:?}");
    stage.wait_refused("client", "destination_unknown", before);
}

/// The most that a process has ever had in memory.
fn peak_mib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() / 1024
}
