//! A live supervisor, one capability less: each that it keeps is needed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use mesh_lab::Lab;
use mesh_lab::inject::{Tracee, drop_capability};
use mesh_lab::wait;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::document::documented_capabilities;
use crate::packets::send;
use crate::{CLIENT, WEB, assert_carried, lab, supervisor, worker};

/// What a birth takes, and the step of it that fails without.
const OF_A_BIRTH: [(u8, &str); 5] = [
    (6, "dropping groups"),
    (7, "taking its uid"),
    (8, "dropping the bounding set"),
    (21, "entering the pod's network namespace"),
    (27, "entering an empty root"),
];

const KILL: u8 = 5;
const SYS_PTRACE: u8 = 19;

#[test]
fn without_any_capability_of_a_birth_no_worker_is_born() {
    let (mut lab, _server) = lab();
    let node = lab.pod(CLIENT).node();
    for (capability, step) in OF_A_BIRTH {
        drop_capability(supervisor(&lab, CLIENT), capability).unwrap();
        let old = worker(&lab, CLIENT);
        kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
        let what = format!("capability {capability} to be missed at \"{step}\"");
        wait::until_true(&what, wait::PATIENCE, || {
            let status = lab.agent(node).pod_status(lab.pod(CLIENT))?;
            Ok(status["reason"].as_str().unwrap_or("").contains(step))
        })
        .unwrap();
        let (agent, host) = lab.agent_mut(node);
        agent.daemon.kill9().unwrap();
        agent.start(host).unwrap();
        let agent = lab.agent(node);
        agent
            .wait_new_worker(lab.pod(CLIENT), old, wait::PATIENCE)
            .unwrap();
    }
    assert_carried(lab.pod(CLIENT), lab.pod(WEB));
}

/// It takes five seconds until the supervisor gives up waiting for the end.
#[test]
fn without_cap_kill_a_worker_that_is_to_end_lives_on_and_that_is_told() {
    let (lab, _server) = lab();
    let taken = worker(&lab, CLIENT);
    drop_capability(supervisor(&lab, CLIENT), KILL).unwrap();
    let mut seized = Tracee::seize(taken).unwrap();
    assert!(send(&mut seized, b"no packet") > 0);
    drop(seized);
    let agent = lab.agent(lab.pod(CLIENT).node());
    agent.daemon.wait_log("doesn't end on SIGKILL").unwrap();
    assert!(Path::new(&format!("/proc/{taken}")).exists());
}

#[test]
fn a_start_without_a_needed_capability_is_refused_by_its_name() {
    let (mut lab, _server) = lab();
    let node = lab.pod(CLIENT).node();
    lab.agent_mut(node).0.daemon.terminate().unwrap();
    for (name, number) in documented_capabilities() {
        let lacking = move || {
            // SAFETY: takes integers.
            match unsafe {
                libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0)
            } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        let mut supervisor = Supervisor::start(&lab, node, |command| {
            // SAFETY: one system call, which is safe after a fork.
            unsafe { command.pre_exec(lacking) };
        });
        let child = &mut supervisor.child;
        let ended = wait::until("its end", wait::PATIENCE, || Ok(child.try_wait()?));
        let said = supervisor.end();
        let code = ended
            .unwrap_or_else(|error| panic!("{name}: {error}: {said}"))
            .code();
        assert_eq!(code, Some(1), "{name}: {said}");
        let refusal = format!("the supervisor lacks {name} (");
        assert!(said.contains(&refusal), "{name}: {said}");
    }
    let (agent, host) = lab.agent_mut(node);
    agent.start(host).unwrap();
    assert_carried(lab.pod(CLIENT), lab.pod(WEB));
}

/// A supervisor that the test itself starts in the place of a node's own, which has ended.
struct Supervisor {
    child: Child,
    log: PathBuf,
}

impl Supervisor {
    fn start(lab: &Lab, node: usize, adjust: impl FnOnce(&mut Command)) -> Self {
        let (agent, host) = (lab.agent(node), lab.node(node));
        let log = host.folder.join("another.log");
        let mut command = host.netns.command(agent.daemon.program());
        command.args(agent.daemon.arguments());
        command.stderr(File::create(&log).unwrap());
        adjust(&mut command);
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Ends it, if it has not ended; what it has said.
    fn end(self) -> String {
        let log = self.log.clone();
        drop(self);
        fs::read_to_string(log).unwrap()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Adopting is the one duty of a supervisor that has just started. It reads the pods' records
/// first, once it has given up what it does not need: there it waits, for a record that nobody has
/// written yet.
#[test]
fn without_cap_sys_ptrace_no_worker_is_adopted() {
    let (mut lab, _server) = lab();
    let client = lab.pod(CLIENT);
    let (node, old) = (client.node(), worker(&lab, CLIENT));
    let record = lab.node(node).folder.join("run/pods/shop_client.json");
    let (agent, _) = lab.agent_mut(node);
    agent.daemon.kill9().unwrap();
    let kept = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    mkfifo(&record, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let supervisor = Supervisor::start(&lab, node, |_| ());
    let mut writer = File::options();
    writer.write(true).custom_flags(libc::O_NONBLOCK);
    let mut written = wait::until("a reader of the record", wait::PATIENCE, || {
        match writer.open(&record) {
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    })
    .unwrap();
    drop_capability(supervisor.pid(), SYS_PTRACE).unwrap();
    written.write_all(&kept).unwrap();
    drop(written);
    let agent = lab.agent(node);
    let client = lab.pod(CLIENT);
    agent.wait_new_worker(client, old, wait::PATIENCE).unwrap();
    let said = supervisor.end();
    let why = format!("adopting process {old} failed at");
    assert!(said.contains(&why), "{said}");
    let (agent, host) = lab.agent_mut(node);
    agent.start(host).unwrap();
    assert_carried(lab.pod(CLIENT), lab.pod(WEB));
}
