//! A supervisor that dies while a worker is born that is to replace another.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use mesh_lab::{Lab, cgroup, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::counted::Counted;
use crate::{CLIENT, COUNTED, WEB, draining, lab, wait_status, workers};

/// The moment lasts some milliseconds.
const ATTEMPTS: u32 = 5;

#[test]
fn an_old_worker_keeps_what_it_has_though_the_next_supervisor_has_not_heard_of_it_yet() {
    assert!(
        (0..ATTEMPTS).any(|_| replaced_unheard()),
        "in {ATTEMPTS} attempts none died between a worker's birth and its first words"
    );
}

/// False if the new worker was not found as one that is to take over.
fn replaced_unheard() -> bool {
    let mut lab = lab(|plan| plan);
    let counted = Counted::open(lab.pod(CLIENT), lab.pod(WEB), COUNTED, 10);
    let old = workers(&lab)[0];
    let group = cgroup_of(old);
    signal(old, Signal::SIGSTOP);
    let roll = lab.agent(0).admin(&["roll", "--all"]).output().unwrap();
    assert!(roll.status.success(), "{roll:?}");
    let born = newborn(&group, old);
    signal(born, Signal::SIGSTOP);
    let (agent, host) = lab.agent_mut(0);
    agent.daemon.kill9().unwrap();
    signal(born, Signal::SIGCONT);
    agent.start(host).unwrap();
    if !is_found_as_next(&lab, born) {
        signal(old, Signal::SIGCONT);
        return false;
    }
    wait::until_true("the new worker to take over", wait::PATIENCE, || {
        Ok(workers(&lab)[0] == born)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    signal(old, Signal::SIGCONT);
    counted.wait(100);
    counted.assert_open();
    wait_status(&lab, 0, "the old connections to be listed", |status| {
        draining(status).1 >= 10
    });
    counted.finish_unharmed();
    lab.finish().unwrap();
    true
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn cgroup_of(pid: i32) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    cgroup::mount_point().unwrap().join(group.unwrap())
}

/// The first worker beside the old one, as soon as it is confined.
fn newborn(group: &Path, old: i32) -> i32 {
    let deadline = Instant::now() + wait::PATIENCE;
    loop {
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        let pids = processes.lines().filter_map(|pid| pid.parse().ok());
        let mut others = pids.filter(|pid| *pid != old);
        if let Some(born) = others.find(|pid| is_confined(*pid)) {
            return born;
        }
        assert!(Instant::now() < deadline, "no worker was born");
        thread::yield_now();
    }
}

fn is_confined(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line == "Seccomp:\t2")
}

fn is_found_as_next(lab: &Lab, pid: i32) -> bool {
    let log = fs::read_to_string(lab.agent(0).daemon.log()).unwrap();
    let pid = format!("pid={pid} ");
    let mut adopted = log.lines().filter(|line| line.contains("worker adopted"));
    adopted.any(|line| line.contains(&pid) && line.contains("part=Next"))
}
