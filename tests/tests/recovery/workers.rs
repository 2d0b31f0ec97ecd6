//! Workers are killed.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use mesh_lab::{Lab, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{CLIENT, DB, NEIGHBOUR, WEB, lab, serve, target, worker};
use mesh_lab::traffic::{Conversation, Traffic, call};

const KILLS: usize = 5;
/// For the median, on a machine that does other things as well.
const MOST: Duration = Duration::from_secs(1);

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// One kill, as the agent and as a client of the pod see it.
#[derive(Debug)]
struct Outage {
    /// From the worker's death to the next worker's readiness.
    agent: Duration,
    /// From the kill to the answer to a call that was made after it.
    client: Duration,
    /// Calls until one was answered.
    calls: u32,
}

fn outage(lab: &Lab, victim: &str) -> Outage {
    let pod = lab.pod(victim);
    let agent = lab.agent(pod.node());
    let old = worker(lab, victim);
    let to = target(lab.pod(WEB));
    let killed_at = Instant::now();
    signal(old, Signal::SIGKILL);
    let (client, calls) = lab.pod(CLIENT).netns.run(|| {
        let mut calls = 1;
        while let Err(error) = call(to) {
            calls += 1;
            assert!(killed_at.elapsed() < wait::PATIENCE, "{error}");
        }
        (killed_at.elapsed(), calls)
    });
    let new = agent.wait_new_worker(pod, old, wait::PATIENCE).unwrap();
    let line = agent
        .daemon
        .wait_log(&format!("pid={new} outage_ms="))
        .unwrap();
    let (_, measured) = line.split_once("outage_ms=").unwrap();
    let measured_ms: f64 = measured.split(' ').next().unwrap().parse().unwrap();
    Outage {
        agent: Duration::from_secs_f64(measured_ms / 1e3),
        client,
        calls,
    }
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

#[test]
fn a_killed_worker_is_replaced_at_once_while_control_is_away() {
    let mut lab = lab();
    let _servers = [serve(lab.pod(WEB)), serve(lab.pod(DB))];
    let (to_web, to_db) = (target(lab.pod(WEB)), target(lab.pod(DB)));
    let unharmed = Traffic::stream(lab.pod(NEIGHBOUR), to_db);
    let callers: Vec<_> = (0..4)
        .map(|_| Traffic::calls(lab.pod(CLIENT), to_web))
        .collect();
    lab.control_mut().0.daemon.kill9().unwrap();
    for victim in [CLIENT, WEB] {
        let cut = Traffic::stream(lab.pod(CLIENT), to_web);
        let outages: Vec<Outage> = (0..KILLS)
            .map(|_| {
                let outage = outage(&lab, victim);
                callers.iter().for_each(|c| c.wait(5));
                outage
            })
            .collect();
        let in_vain: u32 = outages.iter().map(|o| o.calls - 1).sum();
        println!("{victim} killed: {outages:?}, {in_vain} calls in vain");
        let agent = median(outages.iter().map(|o| o.agent).collect());
        let client = median(outages.iter().map(|o| o.client).collect());
        println!("{victim} killed: median {agent:?} to the next worker, {client:?} to an answer");
        assert!(agent < MOST && client < MOST, "{}", lab.log_tails());
        // What was established goes with the process that held its keys.
        assert!(!cut.finish().failed.is_empty(), "its streams can't survive");
    }
    unharmed.finish_unharmed("a stream between other pods");
    let mut failed = 0;
    for caller in callers {
        let seen = caller.finish();
        println!("calls meanwhile: {} answered, {:?}", seen.done, seen.failed);
        // A cut must never look like the end of the data.
        let cut = |error: &String| error.ends_with("Connection reset by peer (os error 104)");
        assert!(seen.failed.iter().all(cut), "{:?}", seen.failed);
        failed += seen.failed.len();
    }
    // A caller has one call under way at a time: that is what a kill can cost.
    assert!(failed <= 4 * 2 * KILLS, "{failed} calls failed");
    let restarts = |key: &str| {
        let pod = lab.pod(key);
        lab.agent(pod.node()).pod_status(pod).unwrap()["restarts"].clone()
    };
    assert_eq!([CLIENT, WEB].map(restarts), [KILLS, KILLS]);
    assert_eq!([NEIGHBOUR, DB].map(restarts), [0, 0]);
}

/// A worker that is stopped accepts nothing, while the kernel goes on completing
/// handshakes: what piles up then is what a kill finds in the accept queue.
#[test]
fn what_waits_to_be_accepted_is_served_by_the_next_worker() {
    const WAITING: u64 = 50;
    let lab = lab();
    let _server = serve(lab.pod(WEB));
    let to = target(lab.pod(WEB));
    lab.pod(CLIENT).netns.run(|| call(to).unwrap());

    // Of the pod that calls: captured connections.
    let old = worker(&lab, CLIENT);
    signal(old, Signal::SIGSTOP);
    let mut waiting: Vec<Conversation> = lab.pod(CLIENT).netns.run(|| {
        (0..WAITING)
            .map(|_| Conversation::open(to).unwrap())
            .collect()
    });
    signal(old, Signal::SIGKILL);
    for (conversation, number) in waiting.iter_mut().zip(0..) {
        conversation.greeted().unwrap();
        conversation.say(number).unwrap();
    }
    let status = lab.agent(0).pod_status(lab.pod(CLIENT)).unwrap();
    assert_eq!(status["restarts"], 1, "{status}");

    // Of the pod that is called: a tunnel that another worker opens meanwhile.
    let old = worker(&lab, WEB);
    signal(old, Signal::SIGSTOP);
    let neighbour = lab.pod(NEIGHBOUR);
    let mut waiting: Vec<Conversation> = neighbour.netns.run(|| {
        (0..WAITING)
            .map(|_| Conversation::open(to).unwrap())
            .collect()
    });
    wait::until_true("the tunnel's connection to wait", wait::PATIENCE, || {
        Ok(established(&lab, WEB, 15008) > 0)
    })
    .unwrap();
    signal(old, Signal::SIGKILL);
    for (conversation, number) in waiting.iter_mut().zip(0..) {
        conversation.greeted().unwrap();
        conversation.say(number).unwrap();
    }
    let status = lab.agent(1).pod_status(lab.pod(WEB)).unwrap();
    assert_eq!(status["restarts"], 1, "{status}");
}

/// An app must never take a cut for the end of its data: not even before its first byte.
#[test]
fn a_call_that_is_cut_while_its_way_is_made_is_reset() {
    let lab = lab();
    let _server = serve(lab.pod(WEB));
    let to = target(lab.pod(WEB));
    let (neighbour, stopped) = (lab.pod(NEIGHBOUR), worker(&lab, WEB));
    signal(stopped, Signal::SIGSTOP);
    let mut conversation = neighbour.netns.run(|| Conversation::open(to).unwrap());
    wait::until_true("the tunnel's connection to wait", wait::PATIENCE, || {
        Ok(established(&lab, WEB, 15008) > 0)
    })
    .unwrap();
    signal(worker(&lab, NEIGHBOUR), Signal::SIGKILL);
    let error = conversation.greeted().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    signal(stopped, Signal::SIGCONT);
    neighbour.netns.run(|| call(to).unwrap());
}

/// Established connections of a pod's namespace to a local port from the neighbour.
fn established(lab: &Lab, key: &str, port: u16) -> usize {
    let tables = lab.pod(key).netns.run(|| {
        let table = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        table("tcp").unwrap() + &table("tcp6").unwrap()
    });
    let octets = lab.pod(NEIGHBOUR).v4().octets();
    let from = format!("{:08X}", u32::from_le_bytes(octets));
    let lines = tables.lines().filter(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        columns.len() > 3
            && columns[1].ends_with(&format!(":{port:04X}"))
            && columns[2].contains(&from)
            && columns[3] == "01"
    });
    lines.count()
}
