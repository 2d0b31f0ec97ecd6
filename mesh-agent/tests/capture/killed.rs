//! An agent that is killed while it takes over from another version leaves something that the next
//! one finishes, of whichever version, and that holds until then.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mesh_agent::capture::{Capture, CaptureOptions};
use mesh_common::{ABI_VERSION, KernelReason, map_name};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::lab::{Lab, netns_path};
use crate::names::{address, original_destination, peer};
use crate::takeover::{
    OTHER, OUTSIDE, assert_captured, assert_on_own_maps, assert_steered, dial, fact, folder, open,
    play_other, versions,
};
use crate::{device, program};

/// Set where the test below is to play the agent that is killed; it says on what.
const TAKER: &str = "NODEMESH_TEST_TAKER";
/// What the two versions have in different layouts: each kind of what can become of a map.
const CHANGED: [&str; 4] = [
    map_name::PODS,
    map_name::WALLS,
    map_name::POLICIES,
    map_name::EVENTS,
];
/// When no further round is begun; natively all of them take a fraction of it.
const ENOUGH: Duration = Duration::from_secs(40);
const TEST: &str =
    "killed::an_agent_killed_while_it_takes_over_leaves_what_either_version_finishes";

/// Takes over, once.
fn take(taker: &str) {
    let [instance, mesh_cgroup, netns] = taker.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{taker}");
    };
    let netns = fs::File::open(netns_path(netns)).unwrap();
    nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let mesh_cgroup = Path::new(mesh_cgroup);
    let capture = Capture::open(&CaptureOptions {
        instance: instance.into(),
        bpffs: "/sys/fs/bpf".into(),
        cgroup_root: mesh_cgroup.parent().unwrap().into(),
        mesh_cgroup: mesh_cgroup.into(),
    });
    assert!(capture.unwrap().taken_over().is_some());
}

/// What a system call does to links, pins and folders, if it does.
fn step(info: &libc::ptrace_syscall_info) -> Option<&'static str> {
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: at the entry of a system call this is the field that the kernel has filled.
    let entry = unsafe { info.u.entry };
    // The commands of `linux/bpf.h`.
    match (i64::try_from(entry.nr).unwrap(), entry.args[0]) {
        (libc::SYS_bpf, 6) => Some("pin"),
        (libc::SYS_bpf, 29) => Some("replace"),
        (libc::SYS_bpf, 34) => Some("detach"),
        (libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2, _) => Some("rename"),
        (libc::SYS_unlink | libc::SYS_unlinkat, _) => Some("unlink"),
        (libc::SYS_mkdir | libc::SYS_mkdirat | libc::SYS_rmdir, _) => Some("folder"),
        _ => None,
    }
}

/// Another agent takes over, and is killed before its step of that number, if there are so many.
/// Returns the steps that it came to.
fn take_over_killed(lab: &Lab, before: Option<usize>) -> Vec<&'static str> {
    let cgroup = lab.options.mesh_cgroup.display();
    let taker = format!("{} {cgroup} {}", lab.prefix, lab.node_netns());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST]).env(TAKER, taker);
    command.stdout(Stdio::null());
    // SAFETY: one system call.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let mut child = command.spawn().unwrap();
    let agent = test_thread(Pid::from_raw(child.id().cast_signed()));
    let mut steps = Vec::new();
    loop {
        ptrace::syscall(agent, None).unwrap();
        match wait(agent) {
            WaitStatus::PtraceSyscall(_) => {
                let info = ptrace::syscall_info(agent).unwrap();
                let Some(step) = step(&info) else { continue };
                if before == Some(steps.len()) {
                    child.kill().unwrap();
                    wait(agent);
                    child.wait().unwrap();
                    return steps;
                }
                steps.push(step);
            }
            WaitStatus::Exited(..) => {
                assert!(child.wait().unwrap().success(), "the agent failed");
                assert_eq!(before, None, "it ended before step {before:?}");
                return steps;
            }
            other => panic!("{other:?}"),
        }
    }
}

fn wait(thread: Pid) -> WaitStatus {
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap()
}

/// The thread on which the test harness runs its one test.
fn test_thread(harness: Pid) -> Pid {
    wait(harness);
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
        | ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(harness, options).unwrap();
    ptrace::cont(harness, None).unwrap();
    let cloned = wait(harness);
    assert!(matches!(cloned, WaitStatus::PtraceEvent(..)), "{cloned:?}");
    let thread = ptrace::getevent(harness).unwrap();
    ptrace::cont(harness, None).unwrap();
    let thread = Pid::from_raw(i32::try_from(thread).unwrap());
    wait(thread);
    thread
}

/// Most telling first: among the links, before and after each renaming, and some of the rest.
fn worth_dying_before(steps: &[&str]) -> Vec<usize> {
    let of = |kind: &str| -> Vec<usize> {
        let all = 0..steps.len();
        all.filter(|&i| steps[i] == kind).collect()
    };
    let links = of("replace");
    let mut chosen = vec![links[links.len() / 2], links[1], links[links.len() - 1]];
    chosen.extend(of("rename").into_iter().flat_map(|i| [i, i + 1]));
    for (kind, few) in [("pin", 3), ("unlink", 4), ("folder", 2)] {
        let all = of(kind);
        chosen.extend((0..few).map(|i| all[i * (all.len() - 1) / (few - 1)]));
    }
    chosen
}

/// From now on this test's agent plays the other version, and what was the other's is this one's.
fn swap_roles(lab: &Lab) {
    let (ours, theirs) = (folder(lab, ABI_VERSION), folder(lab, OTHER));
    let aside = ours.with_file_name("aside");
    for (from, to) in [(&ours, &aside), (&theirs, &ours), (&aside, &theirs)] {
        if from.exists() {
            fs::rename(from, to).unwrap();
        }
    }
    for maps in [ours, theirs]
        .map(|folder| folder.join("maps"))
        .iter()
        .filter(|m| m.exists())
    {
        for map in CHANGED {
            let (one, two) = (maps.join(map), maps.join(format!("{map}_7")));
            match one.exists() {
                true => fs::rename(one, two).unwrap(),
                false => fs::rename(two, one).unwrap(),
            }
        }
    }
}

/// The numbers of all links that stand: another number is another attachment.
fn links(lab: &Lab) -> BTreeMap<String, u64> {
    let links = fs::read_dir(folder(lab, ABI_VERSION).join("links")).unwrap();
    let links = links.map(|entry| entry.unwrap().path());
    let numbered = links.map(|link| {
        let name = link.file_name().unwrap().to_str().unwrap().to_owned();
        (
            name,
            fact(program::pinned(&link).as_fd(), "link_id").unwrap(),
        )
    });
    numbered.collect()
}

#[test]
fn an_agent_killed_while_it_takes_over_leaves_what_either_version_finishes() {
    if let Ok(taker) = std::env::var(TAKER) {
        return take(&taker);
    }
    let mut lab = Lab::new();
    let before = links(&lab);
    let old = dial(&lab, address(OUTSIDE)).unwrap();
    let (accepted, _) = crate::names::accept(&lab.worker().outbound_v4);
    play_other(&mut lab, &CHANGED);
    let steps = take_over_killed(&lab, None);
    assert!(steps.len() > 50, "{steps:?}");
    let mut raw_sent = 0;
    let began = Instant::now();
    for (round, step) in worth_dying_before(&steps).into_iter().enumerate() {
        // An emulated machine takes seconds to load the programs, three times a round.
        if round >= 2 && began.elapsed() > ENOUGH {
            println!("killed {round} times, which is all there was time for");
            break;
        }
        play_other(&mut lab, &CHANGED);
        let taken = take_over_killed(&lab, Some(step));
        assert_eq!(taken[..], steps[..step], "another course");
        // Nobody is there.
        for (wall, _) in device::WALLS {
            assert_eq!(device::order(&lab, wall), [wall]);
        }
        assert_captured(&lab);
        assert_steered(&lab);
        crate::wall::send_raw_syn(&lab, address("10.88.0.1:80"));
        if round % 2 == 1 {
            swap_roles(&lab);
        }
        lab.capture = Some(open(&lab).unwrap_or_else(|e| panic!("{e}, killed before {step}")));
        assert_eq!(versions(&lab), [format!("v{ABI_VERSION}")]);
        assert_eq!(links(&lab), before);
        assert_on_own_maps(&lab);
        assert_captured(&lab);
        assert_steered(&lab);
        crate::wall::send_raw_syn(&lab, address("10.88.0.1:80"));
        raw_sent += 2;
        assert_eq!(lab.refused(0, KernelReason::WallNotWorker), raw_sent);
        assert_eq!(peer(&old), address(OUTSIDE));
        assert_eq!(
            original_destination(&accepted, libc::SOL_IP),
            address(OUTSIDE)
        );
        for (wall, _) in device::WALLS {
            assert_eq!(device::order(&lab, wall), [wall]);
        }
    }
}
