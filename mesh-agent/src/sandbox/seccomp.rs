//! The system calls that a worker may make; everything else is refused.
//!
//! What is refused gets `EPERM` and the worker lives on. Killing it instead would turn a call
//! that a new library version makes in some corner into a pod without network, while a
//! refused call gives an attacker nothing either.

use std::io;

use libc::c_long;
use seccompiler::SeccompRule;

use mesh_common::{SO_CLIENT_LABEL, SOL_NODEMESH};

use super::filter::{self, Result, Rules, equal, of, one_of, rule, socket_type, without_bits};

/// Installs the filter on the calling thread, which must be the only one.
pub(super) fn install() -> io::Result<()> {
    let rules = rules(std::process::id()).map_err(io::Error::other)?;
    filter::allow_only(rules)
}

fn rules(pid: u32) -> Result<Rules> {
    let mut rules = filter::whatever_arguments(ANY_ARGUMENTS);
    rules.insert(libc::SYS_socket, sockets()?);
    rules.insert(libc::SYS_socketpair, socket_pairs()?);
    rules.insert(libc::SYS_setsockopt, socket_options()?);
    rules.insert(libc::SYS_getsockopt, one_of(1, &READABLE_LEVELS)?);
    rules.insert(libc::SYS_fcntl, one_of(1, &FILE_COMMANDS)?);
    rules.insert(libc::SYS_ioctl, one_of(1, &DEVICE_COMMANDS)?);
    let not_executable = rule(&[without_bits(2, libc::PROT_EXEC)?])?;
    rules.insert(libc::SYS_mmap, vec![not_executable.clone()]);
    rules.insert(libc::SYS_mprotect, vec![not_executable]);
    // fstat() of glibc. With this flag a path could be given too: the root is empty.
    rules.insert(libc::SYS_newfstatat, one_of(3, &[EMPTY_PATH])?);
    // abort() signals the calling thread; signalling anyone else is refused.
    rules.insert(libc::SYS_tgkill, vec![rule(&[equal(0, pid.into())?])?]);
    rules.insert(libc::SYS_kill, vec![rule(&[equal(0, pid.into())?])?]);
    Ok(rules)
}

/// What the runtime, the allocator, TLS and the listeners need, and what is harmless with
/// descriptors that the worker already has.
pub(crate) const ANY_ARGUMENTS: &[c_long] = &[
    // Readiness.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Sockets: which ones can be made is decided in `sockets`.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    // Bytes.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_close,
    // The private key's memory.
    libc::SYS_memfd_secret,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    // Memory, time, randomness. mmap and mprotect: `rules`.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_getrandom,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // Itself.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// TCP and UDP over IPv4 and IPv6, by their own protocol numbers: no MPTCP, no ping sockets.
pub(crate) fn sockets() -> Result<Vec<SeccompRule>> {
    let kinds = [
        (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    ];
    let mut rules = Vec::new();
    for domain in [libc::AF_INET, libc::AF_INET6] {
        for (kind, own) in kinds {
            for protocol in [0, own] {
                let conditions = [of(0, domain)?, socket_type(kind)?, of(2, protocol)?];
                rules.push(rule(&conditions)?);
            }
        }
    }
    Ok(rules)
}

/// One connected pair for the runtime's signal handling. A stream: one end of it can't be
/// connected or sent anywhere else, nor taken for a channel.
fn socket_pairs() -> Result<Vec<SeccompRule>> {
    let conditions = [
        of(0, libc::AF_UNIX)?,
        socket_type(libc::SOCK_STREAM)?,
        of(2, 0)?,
    ];
    Ok(vec![rule(&conditions)?])
}

/// Every (level, option) a worker sets. Left out on purpose: filters and programs on sockets,
/// upper-layer protocols, marks, devices.
const SOCKET_OPTIONS: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, SO_BUF_LOCK),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (SOL_NODEMESH, SO_CLIENT_LABEL),
];

/// `asm-generic/socket.h`, Linux 5.14.
const SO_BUF_LOCK: i32 = 72;
/// `linux/tcp.h`.
const TCP_NOTSENT_LOWAT: i32 = 25;

fn socket_options() -> Result<Vec<SeccompRule>> {
    let one = |(level, option): &(i32, i32)| rule(&[of(1, *level)?, of(2, *option)?]);
    SOCKET_OPTIONS.iter().map(one).collect()
}

const READABLE_LEVELS: [u64; 4] = [
    libc::SOL_SOCKET.unsigned_abs() as u64,
    libc::IPPROTO_IP.unsigned_abs() as u64,
    libc::IPPROTO_IPV6.unsigned_abs() as u64,
    libc::IPPROTO_TCP.unsigned_abs() as u64,
];

pub(crate) const FILE_COMMANDS: [u64; 7] = [
    libc::F_DUPFD_CLOEXEC.unsigned_abs() as u64,
    libc::F_GETFD.unsigned_abs() as u64,
    libc::F_SETFD.unsigned_abs() as u64,
    libc::F_GETFL.unsigned_abs() as u64,
    libc::F_SETFL.unsigned_abs() as u64,
    libc::F_ADD_SEALS.unsigned_abs() as u64,
    libc::F_GET_SEALS.unsigned_abs() as u64,
];

const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH.unsigned_abs() as u64;

const DEVICE_COMMANDS: [u64; 3] = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX];
