//! A live worker of the running mesh, taken over while it serves: its system calls.

use std::fs;

use mesh_lab::inject::{Tracee, attempts, second_line};

use crate::{CLIENT, REFUSED, Scene, WEB, assert_carried, lab, worker};

#[test]
fn a_worker_that_is_taken_over_while_it_serves_is_refused_everything() {
    let (lab, _server) = lab();
    let (taken, victim) = (worker(&lab, CLIENT), worker(&lab, WEB));
    let cgroups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let cgroups_before = cgroups(taken);
    let scene = Scene::of(&lab);
    let around = scene.surroundings();

    let mut granted = Vec::new();
    for attempt in attempts(&around) {
        let mut worker = Tracee::seize(taken).unwrap();
        let result = worker.attempt(&attempt).unwrap();
        if result != REFUSED {
            granted.push(format!("{}: {result}", attempt.name));
        }
    }
    for attempt in second_line(&around) {
        let mut worker = Tracee::seize_without_seccomp(taken).unwrap();
        let result = worker.attempt(&attempt).unwrap();
        if result >= 0 {
            granted.push(format!("without its filter, {}: {result}", attempt.name));
        }
    }
    assert!(granted.is_empty(), "not refused: {granted:#?}");

    assert_carried(lab.pod(CLIENT), lab.pod(WEB));
    let now = (worker(&lab, CLIENT), worker(&lab, WEB));
    assert_eq!(now, (taken, victim), "both lived on");
    assert_eq!(cgroups(taken), cgroups_before, "it left no cgroup");
}
