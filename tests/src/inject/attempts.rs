//! What somebody who has taken over a worker would try, one system call each.

mod kernel;
mod paths;
mod processes;
mod sockets;
mod supervisor;

pub use supervisor::{behind_the_supervisors_filter, on_a_supervisor};

use std::path::Path;

use libc::{c_long, pid_t};

/// An argument of this value becomes what [`Attempt::prepare`] returned.
const PREPARED: u64 = 0x4e4d_9e9a_0000_0000;
/// The worker's end of its channel: open in every worker, and in the control process.
const CHANNEL: u64 = 3;
const CWD: u64 = int(libc::AT_FDCWD);
/// A path that is nowhere: what reaches the file system gives `ENOENT` and does no harm.
const NOWHERE: &[u8] = b"/nodemesh-no-such-folder/x\0";

/// A system call: number, arguments ([`super::DATA`] and its like are relocated), data.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its number.
    pub nr: c_long,
    /// Its arguments.
    pub args: [u64; 6],
    /// What arguments point to.
    pub data: Vec<u8>,
}

impl Call {
    /// The same call with the result of the preparing one filled in.
    #[must_use]
    pub fn after(&self, prepared: i64) -> Self {
        let fill = |arg| match arg {
            PREPARED => prepared.cast_unsigned(),
            other => other,
        };
        Self {
            args: self.args.map(fill),
            ..self.clone()
        }
    }
}

/// What the same call must give in an unconfined process, which proves that it is the
/// confinement that refuses it and not a wrong call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// A result that is not negative.
    Succeeds,
    /// Exactly this errno, because the arguments are chosen to do no harm.
    Fails(i32),
    /// Depends on the machine, but is never `EPERM`.
    NotRefused,
    /// Not tried, for this reason.
    Skipped(&'static str),
}

/// One thing to try.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What it is, for messages.
    pub name: String,
    /// A call to make before, which a worker may make.
    pub prepare: Option<Call>,
    /// The call that must be refused.
    pub call: Call,
    /// How an unconfined process fares.
    pub control: Control,
}

impl Attempt {
    fn prepared_by(mut self, call: Call) -> Self {
        self.prepare = Some(call);
        self
    }
}

/// What there is to attack around a worker.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Another pod's worker.
    pub victim: pid_t,
    /// An address that is mapped and readable in the victim.
    pub victim_address: u64,
    /// `cgroup.procs` of the cgroup hierarchy's root.
    pub root_cgroup_procs: &'a Path,
    /// A listening `AF_UNIX` stream socket, say the supervisor's.
    pub unix_socket: &'a Path,
}

/// Everything that a confined worker must be refused with `EPERM`.
#[must_use]
pub fn attempts(around: &Surroundings<'_>) -> Vec<Attempt> {
    let mut all = processes::namespaces();
    all.extend(processes::others(around));
    all.extend(processes::new_code());
    all.extend(sockets::kinds());
    all.extend(sockets::options());
    all.extend(paths::opened(around));
    all.extend(paths::touched());
    all.extend(kernel::ids());
    all.extend(kernel::interfaces(around));
    all
}

/// What must fail (with any errno) even while the seccomp filter is out of force: refused by
/// ids, capabilities, the empty root, landlock, or the lock on executable memory.
#[must_use]
pub fn second_line(around: &Surroundings<'_>) -> Vec<Attempt> {
    let mut all: Vec<_> = attempts(around)
        .into_iter()
        .filter(|attempt| REFUSED_TWICE.contains(&attempt.name.as_str()))
        .collect();
    assert_eq!(all.len(), REFUSED_TWICE.len(), "each is an attempt's name");
    all.extend(processes::by_pidfd(around));
    all.push(sockets::connect_to(around.unix_socket));
    all
}

const REFUSED_TWICE: [&str; 33] = [
    "unshare of its mount namespace",
    "unshare of its network namespace",
    "unshare of its cgroup namespace",
    "ptrace another worker",
    "signal another worker: kill",
    "signal another worker: tgkill",
    "signal another worker: tkill",
    "read another worker's memory",
    "get_robust_list of another worker",
    "prlimit of another worker",
    "sched_setaffinity of another worker",
    "writable executable memory",
    "making memory executable",
    "packet socket",
    "raw IPv4 socket",
    "raw IPv6 socket",
    "a mark on a socket",
    "a transparent socket",
    "openat of the root",
    "openat of its folder",
    "openat of a parent folder",
    "openat of another worker's environment",
    "openat of its own memory",
    "openat of the cgroups' root",
    "openat of a nameless file",
    "openat2",
    "chroot",
    "fsopen",
    "setuid(0)",
    "setresuid(0, 0, 0)",
    "setgid(0)",
    "setgroups",
    "prctl of securebits",
];

fn attempt(name: &str, nr: c_long, args: &[u64], data: &[u8], control: Control) -> Attempt {
    Attempt {
        name: name.to_owned(),
        prepare: None,
        call: call(nr, args, data),
        control,
    }
}

fn call(nr: c_long, args: &[u64], data: &[u8]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call {
        nr,
        args: all,
        data: data.to_vec(),
    }
}

/// A C integer as the register that carries it.
const fn int(value: i32) -> u64 {
    (value as i64).cast_unsigned()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn c_string(path: &Path) -> Vec<u8> {
    let mut bytes = path.as_os_str().as_encoded_bytes().to_vec();
    bytes.push(0);
    bytes
}
