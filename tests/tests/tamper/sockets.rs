//! `ss -K`: sockets of the worker are killed from inside the pod.

use std::time::{Duration, Instant};

use mesh_lab::{Lab, call};

use crate::{CLIENT, WEB, as_root, plan, serve, target, wait_found};

/// From the kill to the next call that is served.
const MOST: Duration = Duration::from_secs(1);

#[test]
fn killed_listeners_are_made_anew_and_killed_tunnels_too() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _server = serve(web, crate::PORT);
    let to = target(web);
    let mut open = call::Open::dial(&client.netns, to).unwrap();
    let worker = |key| {
        let pod = lab.pod(key);
        lab.agent(pod.node()).worker_pid(pod).unwrap()
    };
    let workers = [CLIENT, WEB].map(worker);

    // Tunnels: what went through them is cut, and the next call has another.
    as_root(web, "ss -K state established sport = :15008").unwrap();
    open.wait_reset().unwrap();
    let killed_at = Instant::now();
    assert!(call::tcp(&client.netns, to).served());
    println!("tunnel killed: served after {:?}", killed_at.elapsed());

    // Listeners of either end. That for captured connections can't be killed by name: the kernel
    // looks up what it is to kill as it does for a caller, and steering says another.
    for (pod, listener) in [(client, 15001), (web, 15008), (web, 15006), (client, 15006)] {
        let kill = format!("ss -K state listening sport = :{listener}");
        let said = as_root(pod, &kill).unwrap();
        let killed = said.contains(&listener.to_string());
        assert!(killed || listener == 15001, "{said}");
        let killed_at = Instant::now();
        let mut calls = 1;
        while !call::tcp(&client.netns, to).served() {
            calls += 1;
            assert!(
                killed_at.elapsed() < Duration::from_secs(10),
                "listener {listener} of {} is not made anew\n{}",
                pod.key(),
                lab.log_tails()
            );
        }
        let took = killed_at.elapsed();
        println!(
            "listener {listener} of {} killed: served after {took:?}, call {calls}",
            pod.key()
        );
        assert!(took < MOST, "{took:?}");
        if killed {
            let kind = if listener == 15008 {
                "Hbone"
            } else {
                "Plaintext"
            };
            wait_found(&lab, pod, "listener", "repaired", kind);
        }
    }
    assert_eq!([CLIENT, WEB].map(worker), workers, "the workers lived on");
    // From outside too: plaintext, which is refused by a worker and not by a port that is closed.
    let outside = call::tcp(&lab.outside().netns, to);
    assert_eq!(outside, call::Called::Reset);
}

/// A worker that is stopped doesn't notice; what is left to the next one is no use.
#[test]
fn a_listener_killed_under_a_worker_that_ends_is_made_by_the_next() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _server = serve(web, crate::PORT);
    let agent = lab.agent(web.node());
    let old = agent.worker_pid(web).unwrap();
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), signal).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    as_root(web, "ss -K state listening sport = :15008").unwrap();
    signal(nix::sys::signal::Signal::SIGKILL);
    agent
        .wait_new_worker(web, old, mesh_lab::wait::PATIENCE)
        .unwrap();
    assert!(call::tcp(&client.netns, target(web)).served());
    let status = agent.pod_status(web).unwrap();
    assert_eq!(status["restarts"], 1, "{status}");
}
