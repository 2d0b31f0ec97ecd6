//! A live supervisor, taken over: what it can do beyond its duties, and that it can do those.

use std::fs;

use mesh_lab::inject::{Tracee, behind_the_supervisors_filter, on_a_supervisor};
use mesh_lab::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::document::documented_capabilities;
use crate::{CLIENT, REFUSED, Scene, WEB, assert_carried, lab, supervisor, worker};

#[test]
fn a_supervisor_that_is_taken_over_is_refused_what_is_not_its_duty() {
    let (lab, _server) = lab();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let taken = supervisor(&lab, CLIENT);
    assert_status(taken);
    let scene = Scene::of(&lab);
    let around = scene.surroundings();
    let mut wrong = Vec::new();
    for attempt in on_a_supervisor(&around) {
        let mut supervisor = Tracee::seize(taken).unwrap();
        let result = supervisor.attempt(&attempt).unwrap();
        if result != REFUSED {
            wrong.push(format!("{}: {result}", attempt.name));
        }
    }
    // Its flags can't be filtered, so libc is told to use the one whose can.
    let mut seized = Tracee::seize(taken).unwrap();
    let clone3 = seized.call(libc::SYS_clone3, [0; 6], &[]).unwrap();
    drop(seized);
    assert_eq!(clone3, -i64::from(libc::ENOSYS));
    for attempt in behind_the_supervisors_filter(&around) {
        let mut supervisor = Tracee::seize_without_seccomp(taken).unwrap();
        let result = supervisor.attempt(&attempt).unwrap();
        if ![libc::EPERM, libc::EACCES]
            .map(|e| -i64::from(e))
            .contains(&result)
        {
            wrong.push(format!("without its filter, {}: {result}", attempt.name));
        }
    }
    assert!(wrong.is_empty(), "not refused: {wrong:#?}");

    // It does its duties on: a worker is born, and is as confined as any.
    let old = worker(&lab, CLIENT);
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    let agent = lab.agent(client.node());
    let next = agent.wait_new_worker(client, old, wait::PATIENCE).unwrap();
    assert_eq!(field(next, "CapEff"), "0000000000000000");
    assert_carried(client, web);
    assert_eq!(supervisor(&lab, CLIENT), taken);
}

/// What the kernel says of it is what docs/SECURITY.md says.
fn assert_status(pid: i32) {
    let documented = documented_capabilities();
    let kept = documented
        .iter()
        .fold(0_u64, |set, (_, number)| set | 1 << number);
    let kept = format!("{kept:016x}");
    for (name, expected) in [
        ("CapEff", kept.as_str()),
        ("CapPrm", &kept),
        ("CapBnd", &kept),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(field(pid, name), expected, "{name}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size"));
    let core: Vec<&str> = core.unwrap().split_whitespace().skip(4).collect();
    assert_eq!(core, ["0", "0", "bytes"]);
}

fn field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines().filter_map(|line| line.split_once(":\t"));
    let found = lines.find(|(found, _)| *found == name);
    found.unwrap_or_else(|| panic!("no {name}")).1.to_owned()
}
