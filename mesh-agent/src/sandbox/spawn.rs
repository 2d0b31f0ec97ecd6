//! The supervisor's side of a worker's birth: exec the image with five kinds of
//! descriptors and nothing else.

use std::ffi::{CString, c_char};
use std::fs::OpenOptions;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};

use super::{Newborn, SandboxError, WORKER_COMMAND, WorkerImage, adopt};
use crate::channel;

/// Descriptor number of the pod's network namespace, in the newborn.
pub(super) const NETNS: RawFd = 5;
/// Descriptor number of the first `cgroup.procs` file, in the newborn.
pub(super) const FIRST_CGROUP: RawFd = 6;
/// Inherited descriptors are first copied above this, so that none sits where another is to go.
const CLEAR_OF_TARGETS: RawFd = 64;

/// Where and as whom a worker is born.
#[derive(Debug)]
pub struct Birth<'a> {
    /// The pod's network namespace, already verified to be that pod's.
    pub netns: BorrowedFd<'a>,
    /// `cgroup.procs` of each cgroup to join, open for writing, the cgroup v2 one first.
    pub cgroup_procs: Vec<BorrowedFd<'a>>,
    /// The worker's own uid.
    pub uid: u32,
    /// The worker's own gid.
    pub gid: u32,
    /// `namespace/name` of the pod, for `ps` and for messages.
    pub name: &'a str,
}

/// Starts a worker. It comes back as soon as the image is exec'd; whether the confinement
/// worked is known from the channel: `StartFailed` says why it did not.
///
/// Uses `posix_spawn`, which shares memory with the child until the exec instead of copying
/// the supervisor: cheap, and safe in a process with threads.
///
/// # Errors
/// [`SandboxError::Spawn`].
pub fn spawn(image: &WorkerImage, birth: &Birth<'_>) -> Result<Newborn, SandboxError> {
    let failed = |step: &'static str| {
        move |source: io::Error| SandboxError::Spawn {
            name: birth.name.to_owned(),
            step,
            source,
        }
    };
    let (supervisor, worker) = channel::pair().map_err(failed("socketpair"))?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed("open /dev/null"))?;
    let mut sources = vec![
        null.as_fd(),
        null.as_fd(),
        null.as_fd(),
        worker.as_fd(),
        supervisor.as_fd(),
        birth.netns,
    ];
    sources.extend(&birth.cgroup_procs);
    let inherited = sources
        .iter()
        .map(duplicate_high)
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed("duplicate the descriptors to inherit"))?;
    let pid = exec(image, &inherited, &arguments(birth)).map_err(failed("exec"))?;
    let pidfd = adopt::pidfd_open(pid).map_err(failed("pidfd_open"))?;
    Ok(Newborn {
        pid,
        pidfd,
        channel: supervisor,
    })
}

fn arguments(birth: &Birth<'_>) -> Vec<String> {
    vec![
        format!("nodemesh-worker:{}", birth.name.replace('\0', "")),
        WORKER_COMMAND.to_owned(),
        birth.uid.to_string(),
        birth.gid.to_string(),
        birth.cgroup_procs.len().to_string(),
    ]
}

fn duplicate_high(fd: &BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(CLEAR_OF_TARGETS))?;
    // SAFETY: fcntl has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

fn exec(image: &WorkerImage, inherited: &[OwnedFd], arguments: &[String]) -> io::Result<i32> {
    let path = CString::new(format!("/proc/self/fd/{}", image.as_fd().as_raw_fd()))?;
    let arguments = arguments
        .iter()
        .map(|argument| CString::new(argument.as_str()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut argv: Vec<*mut c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let envp = [std::ptr::null_mut()];
    let mut actions = Actions::new()?;
    for (target, source) in (0..).zip(inherited) {
        actions.dup2(source.as_raw_fd(), target)?;
    }
    let attributes = Attributes::new()?;
    let mut pid = 0;
    // SAFETY: all pointers are to live, initialised values, argv and envp end with null, and
    // posix_spawn keeps none of them.
    let errno = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            envp.as_ptr(),
        )
    };
    result(errno)?;
    Ok(pid)
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given.
        result(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised by the call, which succeeded.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn dup2(&mut self, source: RawFd, target: RawFd) -> io::Result<()> {
        // SAFETY: initialised in `new`.
        result(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, source, target) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    /// A session of its own, no signal blocked, every signal at its default.
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given.
        result(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised by the call, which succeeded.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let flags = POSIX_SPAWN_SETSID | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
        let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        let (all, none) = (signals(true), signals(false));
        // SAFETY: attributes and both sets are initialised and live.
        unsafe {
            result(libc::posix_spawnattr_setflags(&raw mut attributes.0, flags))?;
            result(libc::posix_spawnattr_setsigdefault(
                &raw mut attributes.0,
                &raw const all,
            ))?;
            result(libc::posix_spawnattr_setsigmask(
                &raw mut attributes.0,
                &raw const none,
            ))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// glibc 2.26, `spawn.h`.
const POSIX_SPAWN_SETSID: libc::c_int = 0x80;

fn signals(full: bool) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: both calls initialise the set they are given and can't fail for a valid pointer.
    unsafe {
        if full {
            libc::sigfillset(set.as_mut_ptr());
        } else {
            libc::sigemptyset(set.as_mut_ptr());
        }
        set.assume_init()
    }
}

fn result(errno: libc::c_int) -> io::Result<()> {
    if errno == 0 {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(errno))
}
