//! A live worker of the running mesh, taken over while it serves.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use mesh_lab::inject::{Surroundings, Tracee, attempts, second_line};
use mesh_lab::{Lab, Pod};

const REFUSED: i64 = -(libc::EPERM as i64);

#[test]
fn a_worker_that_is_taken_over_while_it_serves_is_refused_everything() {
    let lab = Lab::two_nodes().unwrap();
    let (client, web) = (lab.pod("shop/client"), lab.pod("shop/web"));
    let server = web.command("mesh-lab-app").args(["serve", "7000"]);
    let _server = server.spawn().unwrap();
    web.wait_listening(7000).unwrap();
    assert_carried(client, web);

    let pid = |pod: &Pod| lab.agent(pod.node()).worker_pid(pod).unwrap();
    let cgroups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (taken, victim) = (pid(client), pid(web));
    let cgroups_before = cgroups(taken);
    let socket = lab.node(client.node()).folder.join("run/agent.sock");
    assert!(socket.exists(), "no admin socket at {}", socket.display());
    let procs = root_cgroup_procs();
    let around = Surroundings {
        victim,
        victim_address: top_of_stack(victim),
        root_cgroup_procs: Path::new(&procs),
        unix_socket: &socket,
    };

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

    assert_carried(client, web);
    assert_eq!((pid(client), pid(web)), (taken, victim), "both lived on");
    assert_eq!(cgroups(taken), cgroups_before, "it left no cgroup");
}

/// A connection from one pod to the other, through both workers.
fn assert_carried(client: &Pod, web: &Pod) {
    let to = SocketAddr::from((web.v4(), 7000)).to_string();
    let input = client.write("input", "payload").unwrap();
    let dial = client.command("mesh-lab-app").args(["dial", &to]);
    let said = dial.stdin(fs::File::open(input).unwrap()).output().unwrap();
    let said = said.ok().unwrap();
    assert!(said.ends_with("\npayload"), "{said}");
}

fn top_of_stack(pid: i32) -> u64 {
    let mappings = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let stack = mappings.lines().find(|l| l.ends_with("[stack]")).unwrap();
    let end = stack.split([' ', '-']).nth(1).unwrap();
    u64::from_str_radix(end, 16).unwrap() - 64
}

fn root_cgroup_procs() -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|l| l.contains(" - cgroup2 ")).unwrap();
    format!("{}/cgroup.procs", mount.split(' ').nth(4).unwrap())
}
