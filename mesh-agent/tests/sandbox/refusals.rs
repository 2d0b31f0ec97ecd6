//! The attempts: from a confined worker, from an unconfined process, and from a worker
//! whose filter is out of force.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use mesh_lab::inject::{
    Attempt, Control, Surroundings, Tracee, attempts, on_a_supervisor, second_line,
};

use mesh_api::worker::to_supervisor;
use nix::sys::signal::Signal;

use crate::place::{Pod, await_end, image};
use crate::supervise::exchange;

const REFUSED: i64 = -(libc::EPERM as i64);

/// Two workers; one is taken over, the other is the victim.
struct Scene {
    taken: Pod,
    victim: Pod,
    folder: tempfile::TempDir,
    _listener: UnixListener,
}

type Attempts = fn(&Surroundings<'_>) -> Vec<Attempt>;

impl Scene {
    fn set() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let _listener = UnixListener::bind(folder.path().join("agent.sock")).expect("a socket");
        Self {
            taken: Pod::born(),
            victim: Pod::born(),
            folder,
            _listener,
        }
    }

    fn attempts(&self, of: Attempts) -> Vec<Attempt> {
        self.attempts_on(self.victim.worker.pid, of)
    }

    fn attempts_on(&self, victim: i32, of: Attempts) -> Vec<Attempt> {
        let mapping = std::fs::read_to_string(format!("/proc/{victim}/maps"));
        let mapping = mapping.expect("its mappings");
        let stack = mapping
            .lines()
            .find(|line| line.ends_with("[stack]"))
            .expect("a stack");
        let end = stack.split([' ', '-']).nth(1).expect("an end");
        let procs = root_cgroup_procs();
        of(&Surroundings {
            victim,
            victim_address: u64::from_str_radix(end, 16).expect("an address") - 64,
            root_cgroup_procs: Path::new(&procs),
            unix_socket: &self.folder.path().join("agent.sock"),
        })
    }
}

#[test]
fn every_attempt_is_refused() {
    let scene = Scene::set();
    let mut granted = Vec::new();
    for attempt in scene.attempts(attempts) {
        let mut worker = Tracee::seize(scene.taken.worker.pid).expect("traced");
        let result = make(&mut worker, &attempt);
        if result != REFUSED {
            granted.push(format!("{}: {result}", attempt.name));
        }
    }
    assert!(granted.is_empty(), "not refused: {granted:#?}");
    // Sockets that the attempts were prepared with stay open: harmless, and its own.
    scene.taken.assert_serves();
    scene.victim.assert_serves();
    let cgroup = scene.taken.place.cgroup.processes().expect("its cgroup");
    assert_eq!(
        cgroup,
        [scene.taken.worker.pid],
        "it made no process and left no cgroup"
    );
}

#[test]
fn the_same_attempts_work_where_nothing_confines() {
    let scene = Scene::set();
    let mut wrong = Vec::new();
    let mut tried = BTreeSet::new();
    let all = [attempts, second_line, on_a_supervisor].map(|of: Attempts| scene.attempts(of));
    for attempt in all.into_iter().flatten() {
        if !tried.insert(attempt.name.clone()) {
            continue;
        }
        let expected = match attempt.control {
            Control::Skipped(why) => {
                println!("no control of {}: {why}", attempt.name);
                continue;
            }
            control => control,
        };
        let free = Free::start();
        let mut tracee = Tracee::seize(free.pid()).expect("traced");
        let result = make(&mut tracee, &attempt);
        let as_expected = match expected {
            Control::Succeeds => result >= 0,
            Control::Fails(errno) => result == -i64::from(errno),
            Control::NotRefused | Control::Skipped(_) => result != REFUSED,
        };
        if !as_expected {
            wrong.push(format!("{}: {result}, expected {expected:?}", attempt.name));
        }
    }
    assert!(wrong.is_empty(), "of {} controls: {wrong:#?}", tried.len());
}

#[test]
fn without_its_filter_a_worker_is_still_confined() {
    let scene = Scene::set();
    let mut granted = Vec::new();
    for attempt in scene.attempts(second_line) {
        let pid = scene.taken.worker.pid;
        let mut worker = Tracee::seize_without_seccomp(pid).expect("traced without its filter");
        let result = make(&mut worker, &attempt);
        if result >= 0 {
            granted.push(format!("{}: {result}", attempt.name));
        }
    }
    assert!(granted.is_empty(), "only the filter refuses: {granted:#?}");
    scene.taken.assert_serves();
    scene.victim.assert_serves();
}

/// A worker and the one that replaces it have one uid, but no way to each other.
#[test]
fn workers_of_one_pod_are_out_of_each_others_reach() {
    let scene = Scene::set();
    let image = image();
    let sibling = scene.taken.place.bear(&image).expect("a sibling");
    exchange(&sibling, Vec::new(), |message| match message {
        to_supervisor::Message::Hello(_) => Some(()),
        other => panic!("{other:?}"),
    });
    let scopes = landlock_version() >= 6;
    if !scopes {
        println!("signals between siblings: skipped, this kernel's landlock has no scopes");
    }
    let mut granted = Vec::new();
    let attempts = scene.attempts_on(sibling.pid, second_line);
    let attempts = attempts.into_iter().filter(|attempt| {
        let reach = [
            "ptrace",
            "read another",
            "get_robust",
            "enter another",
            "take another",
        ];
        let signal = scopes && attempt.name.starts_with("signal another");
        signal || reach.iter().any(|start| attempt.name.starts_with(start))
    });
    for attempt in attempts {
        let mut worker = Tracee::seize_without_seccomp(scene.taken.worker.pid).expect("traced");
        let result = make(&mut worker, &attempt);
        if result >= 0 {
            granted.push(format!("{}: {result}", attempt.name));
        }
    }
    sibling.signal(Signal::SIGKILL).expect("sent");
    await_end(&sibling);
    assert!(granted.is_empty(), "within reach: {granted:#?}");
    scene.taken.assert_serves();
}

fn landlock_version() -> i64 {
    let version = 1;
    // SAFETY: with this flag the kernel only says its version.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, version) }
}

/// The result of an attempt.
fn make(tracee: &mut Tracee, attempt: &Attempt) -> i64 {
    let result = tracee.attempt(attempt);
    result.unwrap_or_else(|error| panic!("{}: {error}", attempt.name))
}

/// A root process that nothing confines, with a socket as descriptor 3 like a worker's.
struct Free(Child);

impl Free {
    fn start() -> Self {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut command = Command::new("sleep");
        command
            .arg("1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let end = theirs.as_raw_fd();
        // SAFETY: dup2 is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(move || {
                if libc::dup2(end, 3) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("a free process");
        drop((ours, theirs));
        Self(child)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Free {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn root_cgroup_procs() -> String {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    let mount = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("cgroup2");
    let folder = mount.split(' ').nth(4).expect("a mount point");
    format!("{folder}/cgroup.procs")
}
