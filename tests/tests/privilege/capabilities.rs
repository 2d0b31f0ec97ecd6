//! A live supervisor, one capability less: each that it keeps is needed.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use mesh_lab::inject::{DATA, Tracee};
use mesh_lab::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::document::documented_capabilities;
use crate::supervisor::capabilities_of;
use crate::{CLIENT, WEB, assert_carried, lab, supervisor, worker};

/// What a birth takes, and the step of it that fails without.
const OF_A_BIRTH: [(u8, &str); 5] = [
    (6, "dropping groups"),
    (7, "taking its uid"),
    (8, "dropping the bounding set"),
    (21, "entering the pod's network namespace"),
    (27, "entering an empty root"),
];

#[test]
fn without_any_capability_of_a_birth_no_worker_is_born() {
    let (mut lab, _server) = lab();
    let node = lab.pod(CLIENT).node();
    for (capability, step) in OF_A_BIRTH {
        take_away(supervisor(&lab, CLIENT), capability);
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

/// Takes one capability from a process and from what it execs.
fn take_away(pid: i32, capability: u8) {
    let kept = capabilities_of(pid) & !(1 << capability);
    let mut seized = Tracee::seize(pid).unwrap();
    let give_up = libc::PR_CAPBSET_DROP.unsigned_abs().into();
    let args = [give_up, capability.into(), 0, 0, 0, 0];
    assert_eq!(seized.call(libc::SYS_prctl, args, &[]).unwrap(), 0);
    let [a, b, c, d, high @ ..] = kept.to_ne_bytes();
    let low = [a, b, c, d];
    // Version 3, this process; effective, permitted, inheritable: low halves, then high ones.
    let sets = [low, low, [0; 4], high, high, [0; 4]].concat();
    let data = [0x2008_0522_u64.to_ne_bytes().to_vec(), sets].concat();
    let args = [DATA, DATA + 8, 0, 0, 0, 0];
    assert_eq!(seized.call(libc::SYS_capset, args, &data).unwrap(), 0);
    drop(seized);
    assert_eq!(capabilities_of(pid), kept);
}

#[test]
fn a_start_without_a_needed_capability_is_refused_by_its_name() {
    let (mut lab, _server) = lab();
    let node = lab.pod(CLIENT).node();
    let pid = supervisor(&lab, CLIENT);
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments = String::from_utf8(arguments).unwrap();
    let arguments: Vec<&str> = arguments.trim_end_matches('\0').split('\0').collect();
    let (agent, host) = lab.agent_mut(node);
    agent.daemon.terminate().unwrap();
    for (name, number) in documented_capabilities() {
        let mut command = Command::new(agent.daemon.program());
        command.args(&arguments[1..]);
        let lacking = move || {
            // SAFETY: takes integers.
            match unsafe {
                libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0)
            } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: one system call, which is safe after a fork.
        unsafe { command.pre_exec(lacking) };
        let mut child = host.netns.run(|| command.stderr(Stdio::piped()).spawn());
        let child = child.as_mut().unwrap();
        let ended = wait::until("its end", wait::PATIENCE, || Ok(child.try_wait()?));
        let _ = child.kill();
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let code = ended
            .unwrap_or_else(|error| panic!("{name}: {error}: {said}"))
            .code();
        assert_eq!(code, Some(1), "{name}: {said}");
        let refusal = format!("the supervisor lacks {name} (");
        assert!(said.contains(&refusal), "{name}: {said}");
    }
    agent.start(host).unwrap();
    assert_carried(lab.pod(CLIENT), lab.pod(WEB));
}
