//! Birth, adoption, and births that fail.

use std::fs::File;
use std::process::{Command, Stdio};

use mesh_agent::sandbox::{Exit, Expected, SandboxError, WorkerImage, adopt};
use mesh_api::worker::to_supervisor;

use crate::place::{Place, Pod, await_end, image};
use crate::supervise::exchange;

#[test]
fn a_confined_worker_serves() {
    let pod = Pod::born();
    pod.assert_serves();
    within_budget(&pod);
    assert_eq!(
        pod.place.cgroup.processes().expect("its cgroup"),
        [pod.worker.pid]
    );
    pod.worker
        .signal(nix::sys::signal::Signal::SIGTERM)
        .expect("sent");
    assert_eq!(await_end(&pod.worker), Some(Exit::Signal(libc::SIGTERM)));
    let gone = !std::path::Path::new(&format!("/proc/{}", pod.worker.pid)).exists();
    assert!(gone, "a zombie is left");
}

#[test]
fn a_supervisor_adopts_its_workers_and_no_others() {
    let mut pod = Pod::born();
    let adopted = adopt(pod.worker.pid, pod.expected()).expect("adopted");
    // The old supervisor's end is closed by this.
    pod.worker.channel = adopted.channel;
    pod.assert_serves();

    let not_ours = |expected: Expected<'_>, pid, what: &str| {
        let error = adopt(pid, expected).expect_err("not ours");
        let text = error.to_string();
        assert!(matches!(error, SandboxError::NotOurs { .. }), "{text}");
        assert!(text.contains(what), "{text}");
    };
    let elsewhere = Expected {
        cgroup: "/nodemesh-elsewhere/default_web",
        ..pod.expected()
    };
    not_ours(elsewhere, pod.worker.pid, "its cgroup");
    let another = Expected {
        uid: pod.place.uid + 1,
        ..pod.expected()
    };
    not_ours(another, pod.worker.pid, "its uid");

    let mut stranger = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .expect("a stranger");
    let pid = stranger.id().cast_signed();
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroup");
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    let expected = Expected {
        cgroup: cgroup.expect("a cgroup"),
        uid: 0,
    };
    not_ours(expected, pid, "its executable");
    stranger.kill().expect("ended");
    stranger.wait().expect("reaped");
    let error = adopt(pid, expected).expect_err("gone").to_string();
    assert!(error.contains("pidfd_open"), "{error}");
}

#[test]
fn a_birth_that_fails_says_why() {
    let place = Place::made();
    let image = image();
    let null = File::open("/dev/null").expect("null");
    let unborn = place.bear_in(&null, &image).expect("the exec itself works");
    let why = exchange(&unborn, Vec::new(), |message| match message {
        to_supervisor::Message::StartFailed(failed) => Some(failed.why),
        other => panic!("{other:?}"),
    });
    let step = "entering the pod's network namespace";
    assert!(why.contains(step), "{why}");
    assert_eq!(await_end(&unborn), Some(Exit::Code(1)));

    let no_program = WorkerImage::seal_file("/etc/passwd".as_ref()).expect("a copy");
    let error = place.bear(&no_program).expect_err("no program");
    assert!(
        error.to_string().contains("default/web failed at exec"),
        "{error}"
    );
}

/// In every hierarchy that carries a part of the budget it is in the pod's cgroup.
fn within_budget(pod: &Pod) {
    let cgroups = std::fs::read_to_string(pod.proc("cgroup")).expect("its cgroups");
    let unenforced = pod.place.cgroup.unenforced().join("; ");
    let path = pod.place.cgroup.path();
    let unified = format!("0::{path}");
    assert!(cgroups.lines().any(|line| line == unified), "{cgroups}");
    for controller in ["cpu", "memory", "pids"] {
        let v1 = cgroups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers
                .split(',')
                .any(|c| c == controller)
                .then_some(path)
        });
        if !unenforced.contains(&format!("{controller} budget")) {
            assert_eq!(v1.unwrap_or(path), path, "{controller}: {cgroups}");
        }
    }
}
