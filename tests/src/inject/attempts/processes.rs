//! Leaving its namespaces, reaching other processes, becoming another program.

use super::Control::{Fails, NotRefused, Skipped, Succeeds};
use super::{Attempt, CHANNEL, PREPARED, Surroundings, attempt, call, int, words};
use crate::inject::DATA;

#[rustfmt::skip] // One attempt a line.
pub(super) fn namespaces() -> Vec<Attempt> {
    let unshare = |name, flag, control| {
        let name = format!("unshare of its {name} namespace");
        attempt(&name, libc::SYS_unshare, &[int(flag)], &[], control)
    };
    // CLONE_THREAD without CLONE_SIGHAND is an error, so the control makes no process.
    let thread = int(libc::CLONE_THREAD);
    let thread3 = words(&[thread, 0, 0, 0, 0, 0, 0, 0]);
    let wild = Skipped("a copy of the control process would run wild");
    vec![
        attempt("setns of a descriptor", libc::SYS_setns, &[CHANNEL, 0], &[], Fails(libc::EINVAL)),
        unshare("mount", libc::CLONE_NEWNS, Succeeds),
        unshare("UTS", libc::CLONE_NEWUTS, Succeeds),
        unshare("IPC", libc::CLONE_NEWIPC, Succeeds),
        unshare("user", libc::CLONE_NEWUSER, Succeeds),
        unshare("pid", libc::CLONE_NEWPID, Succeeds),
        unshare("network", libc::CLONE_NEWNET, Succeeds),
        unshare("cgroup", libc::CLONE_NEWCGROUP, Succeeds),
        unshare("time", libc::CLONE_NEWTIME, NotRefused),
        attempt("clone", libc::SYS_clone, &[thread], &[], Fails(libc::EINVAL)),
        attempt("clone3", libc::SYS_clone3, &[DATA, 64], &thread3, Fails(libc::EINVAL)),
        attempt("fork", libc::SYS_fork, &[], &[], wild),
        attempt("vfork", libc::SYS_vfork, &[], &[], wild),
    ]
}

#[rustfmt::skip] // One attempt a line.
pub(super) fn others(around: &Surroundings<'_>) -> Vec<Attempt> {
    let victim = int(around.victim);
    let kill = int(libc::SIGKILL);
    let seize = u64::from(libc::PTRACE_SEIZE);
    // Two iovecs: 8 bytes here, 8 bytes there.
    let vectors = words(&[DATA + 64, 8, around.victim_address, 8, 0, 0, 0, 0, 0]);
    let both = [victim, DATA, 1, DATA + 16, 1, 0];
    let none = [victim, DATA, 0, DATA, 0, 0];
    let files = libc::RLIMIT_NOFILE.into();
    let harm = Skipped("it would end the victim");
    let resource = Skipped("it takes CAP_SYS_RESOURCE, which not every root has");
    vec![
        attempt("ptrace another worker", libc::SYS_ptrace, &[seize, victim], &[], Succeeds),
        attempt("signal another worker: kill", libc::SYS_kill, &[victim, 0], &[], Succeeds),
        attempt("signal another worker: tgkill", libc::SYS_tgkill, &[victim, victim, 0], &[], Succeeds),
        attempt("signal another worker: tkill", libc::SYS_tkill, &[victim, 0], &[], Succeeds),
        attempt("end another worker: kill", libc::SYS_kill, &[victim, kill], &[], harm),
        attempt("end another worker: tgkill", libc::SYS_tgkill, &[victim, victim, kill], &[], harm),
        attempt("read another worker's memory", libc::SYS_process_vm_readv, &both, &vectors, Succeeds),
        attempt("write another worker's memory", libc::SYS_process_vm_writev, &none, &vectors, Succeeds),
        attempt("pidfd_open of another worker", libc::SYS_pidfd_open, &[victim, 0], &[], Succeeds),
        attempt("pidfd_getfd", libc::SYS_pidfd_getfd, &[CHANNEL, 3, 0], &[], Fails(libc::EBADF)),
        attempt("pidfd_send_signal", libc::SYS_pidfd_send_signal, &[CHANNEL], &[], Fails(libc::EBADF)),
        attempt("process_madvise", libc::SYS_process_madvise, &[CHANNEL], &[], NotRefused),
        attempt("get_robust_list of another worker", libc::SYS_get_robust_list, &[victim, DATA, DATA + 8], &[0; 16], Succeeds),
        attempt("prlimit of another worker", libc::SYS_prlimit64, &[victim, files, 0, DATA], &[0; 16], resource),
        attempt("setpriority of another worker", libc::SYS_setpriority, &[0, victim, 0], &[], Succeeds),
        attempt("sched_setaffinity of another worker", libc::SYS_sched_setaffinity, &[victim, 8, DATA], &[0xff; 8], Succeeds),
        attempt("prlimit of itself", libc::SYS_prlimit64, &[0, files, 0, DATA], &[0; 16], Succeeds),
        attempt("signals of a descriptor to another worker", libc::SYS_fcntl, &[CHANNEL, int(libc::F_SETOWN), victim], &[], Succeeds),
    ]
}

/// What a pidfd would allow. The filter does not let a worker have one.
#[rustfmt::skip] // One attempt a line.
pub(super) fn by_pidfd(around: &Surroundings<'_>) -> Vec<Attempt> {
    let net = int(libc::CLONE_NEWNET);
    let open = call(libc::SYS_pidfd_open, &[int(around.victim), 0], &[]);
    [
        attempt("enter another worker's namespace", libc::SYS_setns, &[PREPARED, net], &[], Succeeds),
        attempt("take another worker's channel", libc::SYS_pidfd_getfd, &[PREPARED, CHANNEL, 0], &[], Succeeds),
        attempt("signal another worker by pidfd", libc::SYS_pidfd_send_signal, &[PREPARED], &[], Succeeds),
    ]
    .map(|attempt| attempt.prepared_by(open.clone()))
    .into()
}

#[rustfmt::skip] // One attempt a line.
pub(super) fn new_code() -> Vec<Attempt> {
    const PAGE: u64 = 4096;
    const READ_IMPLIES_EXEC: u64 = 0x0040_0000;
    let private = int(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let shared = int(libc::MAP_SHARED);
    let write = int(libc::PROT_READ | libc::PROT_WRITE);
    let execute = int(libc::PROT_READ | libc::PROT_EXEC);
    let anonymous = |protection| [0, PAGE, protection, private, int(-1), 0];
    let of_file = [0, PAGE, execute, shared, PREPARED, 0];
    let nowhere = super::NOWHERE;
    let memfd = call(libc::SYS_memfd_create, &[DATA, 0], b"x\0");
    let writable = call(libc::SYS_mmap, &anonymous(write), &[]);
    let itself = [PREPARED, DATA, 0, 0, int(libc::AT_EMPTY_PATH)];
    let changed = [PREPARED, PAGE, execute, int(-1)];
    vec![
        attempt("execve", libc::SYS_execve, &[DATA, 0, 0], nowhere, Fails(libc::ENOENT)),
        attempt("execveat of its own memfd", libc::SYS_execveat, &itself, b"\0", Fails(libc::ENOEXEC)).prepared_by(memfd.clone()),
        attempt("executable memory", libc::SYS_mmap, &anonymous(execute), &[], Succeeds),
        attempt("writable executable memory", libc::SYS_mmap, &anonymous(write | execute), &[], Succeeds),
        attempt("executable mapping of its own memfd", libc::SYS_mmap, &of_file, &[], Succeeds).prepared_by(memfd),
        attempt("making memory executable", libc::SYS_mprotect, &changed[..3], &[], Succeeds).prepared_by(writable.clone()),
        attempt("the same by pkey_mprotect", libc::SYS_pkey_mprotect, &changed, &[], Succeeds).prepared_by(writable),
        attempt("readable means executable", libc::SYS_personality, &[READ_IMPLIES_EXEC], &[], Succeeds),
    ]
}
