//! Where a roll ends otherwise than it should: new workers that don't work, supervisors that die on
//! the way, connections that don't end.

use mesh_lab::programs;
use mesh_lab::servers::quiet_nginx;
use mesh_lab::traffic::{Conversation, Traffic};
use nix::sys::signal::Signal;

use crate::counted::Counted;
use crate::{
    CLIENT, COUNTED, End, HTTP, NEIGHBOUR, PODS, WEB, another_agent, answered,
    assert_nothing_refused, draining, is_rolled, lab, pods, replace_supervisor, short_requests, to,
    wait_status, workers,
};

const SERVE: u16 = 7001;

#[test]
fn workers_that_fail_replace_none_and_the_roll_stops() {
    let mut lab = lab(|plan| plan);
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _nginx = quiet_nginx(web, &[HTTP], "hello").unwrap();
    let counted = Counted::open(client, web, COUNTED, 20);
    let short = short_requests(client, to(web, HTTP));
    let before = workers(&lab);
    let broken = programs::mesh_binary("mesh-agent-broken").unwrap();
    replace_supervisor(&mut lab, 0, broken, End::Stopped);
    wait_status(&lab, 0, "the roll to stop", |status| {
        status["roll"]["stopped"] != ""
    });
    let status = lab.agent(0).status().unwrap();
    println!("{:#}", status["roll"]);
    assert_eq!(status["roll"]["failed"], 3);
    assert_eq!(status["roll"]["done"], 0);
    assert!(pods(&status).all(|pod| pod["worker_outdated"] == true));
    let metric = |name| lab.agent(0).metric(lab.node(0), name, &[]).unwrap();
    assert_eq!(metric("nodemesh_roll_stopped"), 1.0);
    assert_eq!(metric("nodemesh_worker_roll_failures_total"), 3.0);
    assert_eq!(metric("nodemesh_worker_outdated"), 2.0);
    counted.wait(100);
    let asked = answered(&short);
    assert_eq!(workers(&lab), before, "the workers are those that work");
    // One that works goes on where this one stopped.
    let next = another_agent(&lab, "next-agent");
    replace_supervisor(&mut lab, 0, next, End::Stopped);
    wait_status(&lab, 0, "every worker to be replaced", is_rolled);
    assert_ne!(workers(&lab)[0], before[0]);
    assert!(answered(&short) >= asked);
    assert_nothing_refused(&lab);
    drop(short);
    counted.finish_unharmed();
    lab.finish().unwrap();
}

#[test]
fn a_supervisor_that_dies_while_workers_drain_finds_out_which_is_which() {
    let mut lab = lab(|plan| plan);
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _nginx = quiet_nginx(web, &[HTTP], "hello").unwrap();
    let counted = Counted::open(client, web, COUNTED, 20);
    let short = short_requests(client, to(web, HTTP));
    let programs = ["next-agent", "agent-after"].map(|name| another_agent(&lab, name));
    for (round, program) in programs.into_iter().enumerate() {
        for node in 0..2 {
            // The one before is killed while workers that it has replaced drain.
            replace_supervisor(&mut lab, node, program.clone(), End::Killed);
            // It may be killed at any moment of its roll.
            let (agent, host) = lab.agent_mut(node);
            agent.daemon.kill9().unwrap();
            agent.start(host).unwrap();
            wait_status(&lab, node, "every worker to be replaced", is_rolled);
            counted.wait(100);
            counted.assert_open();
            wait_status(&lab, node, "the old connections to be listed", |status| {
                draining(status).1 >= 20
            });
            println!("round {round}, node {node}: {} answered", answered(&short));
        }
    }
    let before = workers(&lab);
    for node in 0..2 {
        let (agent, host) = lab.agent_mut(node);
        agent.daemon.kill9().unwrap();
        agent.start(host).unwrap();
        wait_status(&lab, node, "its workers to be adopted", |status| {
            pods(status).filter(|pod| pod["ready"] == true).count() == 2
        });
    }
    assert_eq!(workers(&lab), before, "the same workers serve");
    assert_nothing_refused(&lab);
    drop(short);
    counted.finish_unharmed();
    for node in 0..2 {
        wait_status(&lab, node, "the old workers to have ended", |status| {
            draining(status) == (0, 0)
        });
    }
    lab.finish().unwrap();
}

#[test]
fn what_is_open_when_the_time_to_drain_is_over_is_reset_with_a_reason() {
    let lab = lab(|plan| plan.agent_option("--drain-for", "3"));
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let server = web
        .command("mesh-lab-app")
        .args(["serve", &SERVE.to_string()]);
    let _server = server.spawn().unwrap();
    web.wait_listening(SERVE).unwrap();
    let mut open = client
        .netns
        .run(|| Conversation::open(to(web, SERVE)))
        .unwrap();
    open.greeted().unwrap();
    open.say(1).unwrap();
    let calls = Traffic::calls(client, to(web, SERVE));
    let before = workers(&lab);
    // By hand, and though all run the same program.
    let roll = lab.agent(0).admin(&["roll", "--all"]).output().unwrap();
    assert!(roll.status.success(), "{roll:?}");
    wait_status(&lab, 0, "every worker to be replaced", is_rolled);
    let now = workers(&lab);
    assert_ne!(now[0], before[0]);
    assert_eq!(now[2], before[2], "the other node's are as they were");
    open.say(2).unwrap();
    wait_status(&lab, 0, "the old worker to be listed", |status| {
        draining(status).0 >= 1
    });
    wait_status(&lab, 0, "the old worker to have ended", |status| {
        draining(status) == (0, 0)
    });
    let error = open.say(3).unwrap_err();
    println!("{error}");
    let labels = ["pod=\"shop/client\"", "reason=\"drain_over\""];
    let cut = lab
        .agent(0)
        .metric(lab.node(0), "nodemesh_cut_outbound_total", &labels);
    assert_eq!(cut.unwrap(), 1.0, "{}", lab.log_tails());
    lab.agent(0).daemon.wait_log("reason=drain_over").unwrap();
    calls.finish_unharmed("new connections");
    lab.finish().unwrap();
}

#[test]
fn a_worker_that_ends_while_another_drains_is_replaced_and_the_drain_goes_on() {
    let lab = lab(|plan| plan);
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let counted = Counted::open(client, web, COUNTED, 10);
    let roll = lab.agent(0).admin(&["roll", "--all"]).output().unwrap();
    assert!(roll.status.success(), "{roll:?}");
    wait_status(&lab, 0, "every worker to be replaced", is_rolled);
    let victim = workers(&lab)[0];
    let process = nix::unistd::Pid::from_raw(victim);
    nix::sys::signal::kill(process, Signal::SIGKILL).unwrap();
    lab.agent(0)
        .wait_new_worker(client, victim, mesh_lab::wait::PATIENCE)
        .unwrap();
    wait_status(&lab, 0, "the old connections to be listed", |status| {
        draining(status).1 >= 10
    });
    counted.wait(50);
    counted.finish_unharmed();
    // A pod that is taken out takes its draining workers along.
    let held = Counted::open(lab.pod(NEIGHBOUR), web, COUNTED + 1, 1);
    let roll = lab.agent(0).admin(&["roll", "--all"]).output().unwrap();
    assert!(roll.status.success(), "{roll:?}");
    wait_status(&lab, 0, "every worker to be replaced", is_rolled);
    held.wait(5);
    lab.agent(0).remove_pod(lab.pod(NEIGHBOUR)).unwrap();
    assert!(PODS.contains(&NEIGHBOUR));
    drop(held);
    lab.finish().unwrap();
}
