//! The system calls of a supervisor that has started, and of workers until they have a filter of
//! their own, which adds to this one. Measured by tracing the lab's tests; what is in a family
//! that other versions of the libraries use instead is there too.
//!
//! What is refused gets `EPERM`, as in a worker.

use std::io;

use libc::c_long;
use mesh_common::MAX_PODS;
use seccompiler::SeccompRule;

use crate::sandbox::filter::{
    self, Result, Rules, equal, of, one_of, rule, socket_type, within, without_bits,
};
use crate::sandbox::seccomp;

/// Installs the filter on the calling thread, which must be the only one.
pub(super) fn filter(uid_base: u32) -> io::Result<()> {
    let rules = rules(uid_base).map_err(io::Error::other)?;
    // Its flags are out of a filter's sight. libc then calls clone, whose are not.
    filter::unknown(&[libc::SYS_clone3])?;
    filter::allow_only(rules)
}

fn rules(uid_base: u32) -> Result<Rules> {
    let mut rules = filter::whatever_arguments(seccomp::ANY_ARGUMENTS);
    rules.extend(filter::whatever_arguments(FILES));
    rules.extend(filter::whatever_arguments(PROCESSES));
    rules.extend(filter::whatever_arguments(BIRTH));
    rules.insert(libc::SYS_clone3, Vec::new());
    rules.insert(libc::SYS_bpf, one_of(0, &BPF_COMMANDS)?);
    rules.insert(libc::SYS_socket, sockets()?);
    rules.insert(libc::SYS_socketpair, socket_pairs()?);
    rules.insert(libc::SYS_fcntl, one_of(1, &seccomp::FILE_COMMANDS)?);
    rules.insert(libc::SYS_ioctl, one_of(1, &DEVICE_COMMANDS)?);
    // Threads, and processes that are exec'd: in the namespaces that there are.
    rules.insert(
        libc::SYS_clone,
        vec![rule(&[without_bits(0, ANY_NAMESPACE)?])?],
    );
    rules.insert(libc::SYS_setns, one_of(1, &[flag(libc::CLONE_NEWNET)])?);
    rules.insert(libc::SYS_unshare, one_of(0, &[flag(OWN_NAMESPACES)])?);
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0])?);
    rules.extend(code()?);
    rules.extend(identities(uid_base)?);
    rules.extend(mounts()?);
    Ok(rules)
}

const FILES: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    // The id of a cgroup.
    libc::SYS_name_to_handle_at,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_flock,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_umask,
    // The folders of the CNI plugin, which may be made anew.
    libc::SYS_inotify_add_watch,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
];

const PROCESSES: &[c_long] = &[
    // Workers: made, taken over, ended.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_setsid,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // abort() of the supervisor, and of a worker, whose own filter lets it signal itself alone.
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_close_range,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getppid,
    libc::SYS_sched_getaffinity,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// What the loader of a program does, and what a worker confines itself with.
const BIRTH: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
];

/// Maps, programs, links, pins (`linux/bpf.h`). Not among them: tracepoints, iterators,
/// running a program by hand, a running task's descriptors, statistics.
const BPF_COMMANDS: [u64; 18] = [
    0,  // MAP_CREATE
    1,  // MAP_LOOKUP_ELEM
    2,  // MAP_UPDATE_ELEM
    3,  // MAP_DELETE_ELEM
    4,  // MAP_GET_NEXT_KEY
    5,  // PROG_LOAD
    6,  // OBJ_PIN
    7,  // OBJ_GET
    13, // PROG_GET_FD_BY_ID
    14, // MAP_GET_FD_BY_ID
    15, // OBJ_GET_INFO_BY_FD
    16, // PROG_QUERY
    18, // BTF_LOAD
    22, // MAP_FREEZE
    26, // MAP_UPDATE_BATCH
    28, // LINK_CREATE
    29, // LINK_UPDATE
    34, // LINK_DETACH
];

/// A worker's; the kernel's tables of devices, addresses and routes, and of listeners; admin
/// clients.
fn sockets() -> Result<Vec<SeccompRule>> {
    let mut rules = seccomp::sockets()?;
    for kind in [libc::SOCK_RAW, libc::SOCK_DGRAM] {
        for protocol in [libc::NETLINK_ROUTE, libc::NETLINK_SOCK_DIAG] {
            let conditions = [
                of(0, libc::AF_NETLINK)?,
                socket_type(kind)?,
                of(2, protocol)?,
            ];
            rules.push(rule(&conditions)?);
        }
    }
    rules.push(rule(&[
        of(0, libc::AF_UNIX)?,
        socket_type(libc::SOCK_STREAM)?,
    ])?);
    Ok(rules)
}

/// Workers' channels, and what the runtime hears of signals by.
fn socket_pairs() -> Result<Vec<SeccompRule>> {
    let pair = |kind| rule(&[of(0, libc::AF_UNIX)?, socket_type(kind)?]);
    Ok(vec![pair(libc::SOCK_SEQPACKET)?, pair(libc::SOCK_STREAM)?])
}

const DEVICE_COMMANDS: [u64; 7] = [
    libc::FIONBIO,
    libc::FIONREAD,
    libc::FIOCLEX,
    libc::TCGETS,
    SIOCGIFNAME,
    SIOCGIFINDEX,
    SIOCGIFFLAGS,
];
// `linux/sockios.h`.
const SIOCGIFNAME: u64 = 0x8910;
const SIOCGIFFLAGS: u64 = 0x8913;
const SIOCGIFINDEX: u64 = 0x8933;

const ANY_NAMESPACE: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// A worker's, in one call.
const OWN_NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Code comes from files that are executable and mapped as they are.
fn code() -> Result<Rules> {
    let data = rule(&[without_bits(2, libc::PROT_EXEC)?])?;
    let program = rule(&[
        without_bits(2, libc::PROT_WRITE)?,
        without_bits(3, libc::MAP_ANONYMOUS)?,
    ])?;
    Ok([
        (libc::SYS_mmap, vec![data.clone(), program]),
        (libc::SYS_mprotect, vec![data]),
    ]
    .into())
}

/// A worker becomes one of the mesh's uids, and nobody else.
fn identities(uid_base: u32) -> Result<Rules> {
    let mut ids = Vec::new();
    for index in 0..3 {
        ids.extend(within(index, uid_base, uid_base + MAX_PODS - 1)?);
    }
    let ids = rule(&ids)?;
    Ok([
        (libc::SYS_setresuid, vec![ids.clone()]),
        (libc::SYS_setresgid, vec![ids]),
        (libc::SYS_setgroups, one_of(0, &[0])?),
        (libc::SYS_prctl, one_of(0, &PROCESS_SETTINGS)?),
        (libc::SYS_keyctl, one_of(0, &[JOIN_SESSION_KEYRING])?),
    ]
    .into())
}

const PROCESS_SETTINGS: [u64; 8] = [
    flag(libc::PR_CAPBSET_DROP),
    flag(libc::PR_CAP_AMBIENT),
    flag(libc::PR_SET_DUMPABLE),
    flag(libc::PR_SET_NAME),
    flag(libc::PR_SET_NO_NEW_PRIVS),
    flag(libc::PR_SET_SECUREBITS),
    flag(libc::PR_SET_MDWE),
    flag(libc::PR_GET_MDWE),
];
const JOIN_SESSION_KEYRING: u64 = libc::KEYCTL_JOIN_SESSION_KEYRING as u64;

/// A worker keeps its mounts to itself, leaves the machine's, and has a null device.
fn mounts() -> Result<Rules> {
    let private = rule(&[equal(3, libc::MS_REC | libc::MS_PRIVATE)?, equal(4, 0)?])?;
    let null_device = |mode, device| rule(&[equal(mode, NULL_MODE)?, equal(device, NULL_DEVICE)?]);
    Ok([
        (libc::SYS_mount, vec![private]),
        (libc::SYS_umount2, one_of(1, &[flag(libc::MNT_DETACH)])?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mknod, vec![null_device(1, 2)?]),
        (libc::SYS_mknodat, vec![null_device(2, 3)?]),
    ]
    .into())
}

const NULL_MODE: u64 = (libc::S_IFCHR | 0o600) as u64;
/// Major 1, minor 3.
const NULL_DEVICE: u64 = 1 << 8 | 3;

const fn flag(value: i32) -> u64 {
    value.unsigned_abs() as u64
}
