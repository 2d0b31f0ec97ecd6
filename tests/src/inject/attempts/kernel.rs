//! Ids and privileges, and the kernel's interfaces that a worker has no use for.

use super::Control::{Fails, NotRefused, Succeeds};
use super::{Attempt, NOWHERE, Surroundings, attempt, c_string, int, words};
use crate::inject::DATA;

#[rustfmt::skip] // One attempt a line.
pub(super) fn ids() -> Vec<Attempt> {
    let prctl = |name, option, value| {
        attempt(name, libc::SYS_prctl, &[int(option), value], b"x\0", Succeeds)
    };
    // Version 3, this process; no capability in any set.
    let no_capabilities = [words(&[0x2008_0522]), vec![0; 24]].concat();
    let files = libc::RLIMIT_NOFILE.into();
    vec![
        attempt("setuid(0)", libc::SYS_setuid, &[0], &[], Succeeds),
        attempt("setreuid(0, 0)", libc::SYS_setreuid, &[0, 0], &[], Succeeds),
        attempt("setresuid(0, 0, 0)", libc::SYS_setresuid, &[0, 0, 0], &[], Succeeds),
        attempt("setfsuid(0)", libc::SYS_setfsuid, &[0], &[], Succeeds),
        attempt("setgid(0)", libc::SYS_setgid, &[0], &[], Succeeds),
        attempt("setgroups", libc::SYS_setgroups, &[0, 0], &[], Succeeds),
        attempt("capset", libc::SYS_capset, &[DATA, DATA + 8], &no_capabilities, Succeeds),
        attempt("setrlimit", libc::SYS_setrlimit, &[files, DATA], &words(&[1024, 1024]), Succeeds),
        attempt("seccomp", libc::SYS_seccomp, &[2, 0, DATA], &[0; 4], NotRefused),
        prctl("becoming dumpable", libc::PR_SET_DUMPABLE, 1),
        prctl("prctl of no_new_privs", libc::PR_SET_NO_NEW_PRIVS, 1),
        prctl("prctl of securebits", libc::PR_SET_SECUREBITS, 0),
        prctl("a name of its choice", libc::PR_SET_NAME, DATA),
    ]
}

#[rustfmt::skip] // One attempt a line.
pub(super) fn interfaces(around: &Surroundings<'_>) -> Vec<Attempt> {
    // An array map with one entry of 4 bytes: type, key size, value size, entries.
    let map = [words(&[2 | 4 << 32, 4 | 1 << 32]), vec![0; 56]].concat();
    // Where the path of a pinned object is, then that path.
    let pinned = [words(&[DATA + 16, 0]), c_string(around.unix_socket)].concat();
    let no_event = [DATA, 0, int(-1), int(-1), 0];
    let absent = Fails(libc::ENOENT);
    vec![
        attempt("bpf: a map", libc::SYS_bpf, &[0, DATA, 72], &map, Succeeds),
        attempt("bpf: an object by path", libc::SYS_bpf, &[7, DATA, 16], &pinned, NotRefused),
        attempt("io_uring_setup", libc::SYS_io_uring_setup, &[1, DATA], &[0; 120], NotRefused),
        attempt("io_uring_enter", libc::SYS_io_uring_enter, &[3], &[], NotRefused),
        attempt("keyctl: its session keyring", libc::SYS_keyctl, &[0, int(-3), 0], &[], NotRefused),
        attempt("request_key", libc::SYS_request_key, &[DATA, DATA, 0, 0], b"user\0", NotRefused),
        attempt("userfaultfd", libc::SYS_userfaultfd, &[0], &[], NotRefused),
        attempt("perf_event_open", libc::SYS_perf_event_open, &no_event, &[0; 128], NotRefused),
        attempt("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, &[0, 0, 1], &[], NotRefused),
        attempt("shared memory", libc::SYS_shmget, &[0x4e4d_0001, 4096, 0], &[], absent),
        attempt("message queue", libc::SYS_msgget, &[0x4e4d_0001, 0], &[], absent),
        attempt("semaphores", libc::SYS_semget, &[0x4e4d_0001, 1, 0], &[], absent),
        attempt("loading a module", libc::SYS_finit_module, &[int(-1), DATA, 0], b"\0", NotRefused),
        attempt("removing a module", libc::SYS_delete_module, &[DATA, 0], NOWHERE, NotRefused),
        attempt("kexec_load", libc::SYS_kexec_load, &[0, 0, 0, u64::MAX], &[], NotRefused),
        attempt("reboot", libc::SYS_reboot, &[0, 0, 0, 0], &[], Fails(libc::EINVAL)),
        attempt("sethostname", libc::SYS_sethostname, &[DATA, int(-1)], b"\0", Fails(libc::EINVAL)),
        attempt("the kernel's log", libc::SYS_syslog, &[10, 0, 0], &[], Succeeds),
        attempt("swapon", libc::SYS_swapon, &[DATA, 0], NOWHERE, absent),
        attempt("acct", libc::SYS_acct, &[DATA], NOWHERE, NotRefused),
        attempt("iopl", libc::SYS_iopl, &[0], &[], NotRefused),
        attempt("modify_ldt", libc::SYS_modify_ldt, &[0, DATA, 16], &[0; 16], NotRefused),
        attempt("a call of the x32 ABI", 0x4000_0000 | libc::SYS_getppid, &[], &[], NotRefused),
        attempt("a call that there is not", 9999, &[], &[], Fails(libc::ENOSYS)),
    ]
}
