//! What befalls the aggressor's own worker.

use std::fs;
use std::time::Duration;

use mesh_lab::aggressor::Load;
use mesh_lab::aggressor::fault::Fault;
use mesh_lab::aggressor::stage::{NOISY, SERVE, VICTIM};
use mesh_lab::inject::{DATA, Tracee};
use mesh_lab::{call, wait};

use crate::{Stage, TIME};

/// For a worker that has died young several times over, too.
const BACK_IN: Duration = Duration::from_secs(30);
/// Connections that wait for `accept` of a worker.
const BACKLOG: u64 = 4096;

#[test]
fn a_worker_that_ends_is_replaced_and_nobody_else_notices() {
    let stage = Stage::new();
    let (client, server) = (stage.pod(NOISY, "client"), stage.pod(NOISY, "server"));
    let agent = stage.lab.agent(server.node());
    for fault in [Fault::Abort, Fault::OutOfMemory] {
        let old = agent.worker_pid(server).unwrap();
        stage.beside(TIME, || {
            let _ended = fault.befall(old).unwrap();
            agent.wait_new_worker(server, old, BACK_IN).unwrap();
        });
        let served = wait::until_true("the aggressor to be served again", BACK_IN, || {
            Ok(call::tcp(&client.netns, (server.v4(), SERVE).into()).served())
        });
        served.unwrap_or_else(|e| panic!("{fault:?}: {e:#}\n{}", stage.lab.log_tails()));
    }
}

#[test]
fn a_worker_that_spins_or_is_stopped_holds_up_its_own_pod_only() {
    let stage = Stage::new();
    let server = stage.pod(NOISY, "server");
    let pid = stage.lab.agent(server.node()).worker_pid(server).unwrap();
    for fault in [Fault::Spin, Fault::Stop] {
        let lasting = fault.befall(pid).unwrap();
        let achieved = stage.load(Load::Churn, 4);
        assert_eq!(achieved.done, 0, "{fault:?}: its own pod was served");
        drop(lasting);
        let achieved = stage.load(Load::Churn, 4);
        assert!(achieved.done > 0, "{fault:?}: it did not go on");
    }
}

/// That a pod's places for them run out, and nobody else's, is shown in
/// `mesh-agent/tests/capture/quota.rs`.
#[test]
fn connections_that_a_stopped_worker_does_not_take_wait_in_their_own_pod() {
    let stage = Stage::new();
    let client = stage.pod(NOISY, "client");
    let pid = stage.lab.agent(client.node()).worker_pid(client).unwrap();
    let stopped = Fault::Stop.befall(pid).unwrap();
    // More than wait for `accept`, however many of these a busy machine gets done in the time.
    let achieved = stage.load_for(3 * TIME, Load::BegunConnections, 6_000);
    assert!(achieved.done > BACKLOG, "{achieved:?}");
    drop(stopped);
    let achieved = stage.load(Load::Churn, 4);
    assert!(achieved.done > 0, "it did not go on: {achieved:?}");
}

/// As many descriptors as it has, and a few more: what a smaller limit, or a worker that keeps
/// what it should close, comes to.
#[test]
fn a_worker_without_descriptors_holds_up_its_own_pod_only() {
    const SPARE: u64 = 4;
    let stage = Stage::new();
    let client = stage.pod(NOISY, "client");
    let agent = stage.lab.agent(client.node());
    let pid = agent.worker_pid(client).unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    let exhausted = |tenant: &str| {
        let pod = format!("pod=\"{tenant}/client\"");
        let name = "nodemesh_accept_errors_total";
        let node = stage.lab.node(client.node());
        agent.metric(node, name, &[&pod, "\"exhausted\""]).unwrap()
    };
    let was = limit_descriptors(pid, open + SPARE);
    stage.load(Load::IdleConnections, 64);
    assert!(
        exhausted(NOISY) > 0.0,
        "{}",
        agent.metrics(stage.lab.node(client.node())).unwrap()
    );
    assert!(exhausted(VICTIM) < 1.0);
    limit_descriptors(pid, was);
    let achieved = stage.load(Load::Churn, 4);
    assert!(achieved.done > 0, "it did not go on");
}

/// Has a process itself put another soft limit of its descriptors in force (its filter would
/// refuse that); what it was before.
fn limit_descriptors(pid: i32, soft: u64) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files"));
    let mut words = line.unwrap().split_ascii_whitespace().skip(3);
    let [was, hard] = [(); 2].map(|()| words.next().unwrap().parse::<u64>().unwrap());
    let mut seized = Tracee::seize_without_seccomp(pid).unwrap();
    let args = [0, libc::RLIMIT_NOFILE.into(), DATA, 0, 0, 0];
    let data = [soft, hard].map(u64::to_ne_bytes).concat();
    assert_eq!(seized.call(libc::SYS_prlimit64, args, &data).unwrap(), 0);
    was
}
