//! What somebody who has taken over a supervisor would try beyond its duties.

use super::Control::{Fails, NotRefused, Succeeds};
use super::{Attempt, CWD, NOWHERE, PREPARED, Surroundings, attempt, attempts, call, int};
use crate::inject::DATA;

/// Everything that a supervisor must be refused with `EPERM` once it has started.
///
/// # Panics
/// If the list names what is no attempt on a worker.
#[must_use]
pub fn on_a_supervisor(around: &Surroundings<'_>) -> Vec<Attempt> {
    let mut all = named(around, &AS_A_WORKER);
    all.extend(beyond_a_worker(around));
    all
}

/// What must be refused even while its filter is out of force: by the capabilities that it has
/// given up, or by the lock on executable memory.
///
/// # Panics
/// If the list names what is no attempt on a worker.
#[must_use]
pub fn behind_the_supervisors_filter(around: &Surroundings<'_>) -> Vec<Attempt> {
    named(around, &BY_CAPABILITY)
}

fn named(around: &Surroundings<'_>, names: &[&str]) -> Vec<Attempt> {
    let mut all = attempts(around);
    all.retain(|attempt| names.contains(&attempt.name.as_str()));
    assert_eq!(all.len(), names.len(), "each is an attempt's name");
    all
}

const AS_A_WORKER: [&str; 52] = [
    "setns of a descriptor",
    "unshare of its mount namespace",
    "unshare of its user namespace",
    "unshare of its pid namespace",
    "unshare of its network namespace",
    "unshare of its time namespace",
    "ptrace another worker",
    "read another worker's memory",
    "write another worker's memory",
    "process_madvise",
    "prlimit of another worker",
    "setpriority of another worker",
    "sched_setaffinity of another worker",
    "signals of a descriptor to another worker",
    "executable memory",
    "writable executable memory",
    "making memory executable",
    "the same by pkey_mprotect",
    "readable means executable",
    "packet socket",
    "packet socket, cooked",
    "raw IPv4 socket",
    "raw IPv6 socket",
    "kernel crypto socket",
    "XDP socket",
    "vsock socket",
    "openat2",
    "open_by_handle_at",
    "open_tree",
    "truncate",
    "mknod",
    "symlink",
    "mount",
    "umount",
    "fanotify_init",
    "setuid(0)",
    "setresuid(0, 0, 0)",
    "setfsuid(0)",
    "io_uring_setup",
    "userfaultfd",
    "perf_event_open",
    "request_key",
    "keyctl: its session keyring",
    "loading a module",
    "removing a module",
    "kexec_load",
    "reboot",
    "sethostname",
    "the kernel's log",
    "swapon",
    "iopl",
    "a call that there is not",
];

const BY_CAPABILITY: [&str; 8] = [
    "writable executable memory",
    "making memory executable",
    "packet socket",
    "packet socket, cooked",
    "raw IPv4 socket",
    "raw IPv4 socket for TCP",
    "raw IPv6 socket",
    "reboot",
];

#[rustfmt::skip] // One attempt a line.
fn beyond_a_worker(around: &Surroundings<'_>) -> Vec<Attempt> {
    const TRACEPOINT: u64 = 17;
    const ITERATOR: u64 = 33;
    // CLONE_THREAD without CLONE_SIGHAND is an error, so the control makes no process.
    let user_namespace = int(libc::CLONE_NEWUSER | libc::CLONE_THREAD);
    let disk = [CWD, DATA, u64::from(libc::S_IFBLK | 0o600), 8 << 8];
    let process = call(libc::SYS_pidfd_open, &[int(around.victim), 0], &[]);
    let mounts = [PREPARED, int(libc::CLONE_NEWNS)];
    let app = [1000, 1000, 1000];
    let packets = [int(libc::AF_NETLINK), int(libc::SOCK_RAW), int(libc::NETLINK_NETFILTER)];
    let clock = [int(libc::CLOCK_REALTIME), 0];
    vec![
        attempt("enter another's mount namespace", libc::SYS_setns, &mounts, &[], Succeeds).prepared_by(process),
        attempt("clone into a user namespace", libc::SYS_clone, &[user_namespace], &[], Fails(libc::EINVAL)),
        attempt("a program at a tracepoint", libc::SYS_bpf, &[TRACEPOINT, DATA, 16], &[0; 16], NotRefused),
        attempt("a program that walks the kernel", libc::SYS_bpf, &[ITERATOR, DATA, 16], &[0; 16], NotRefused),
        attempt("a disk's device", libc::SYS_mknodat, &disk, NOWHERE, Fails(libc::ENOENT)),
        attempt("an app's uid", libc::SYS_setresuid, &app, &[], Succeeds),
        attempt("an app's gid", libc::SYS_setresgid, &app, &[], Succeeds),
        attempt("groups", libc::SYS_setgroups, &[1, DATA], &[0; 8], Succeeds),
        attempt("the packet filter", libc::SYS_socket, &packets, &[], NotRefused),
        attempt("the clock", libc::SYS_clock_settime, &clock, &[], Fails(libc::EFAULT)),
        attempt("a file's owner", libc::SYS_fchownat, &[CWD, DATA, 0, 0, 0], NOWHERE, Fails(libc::ENOENT)),
    ]
}
