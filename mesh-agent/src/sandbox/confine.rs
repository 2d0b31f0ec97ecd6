//! The worker's side of its birth: from a privileged process without secrets to one that
//! can do nothing but serve its pod. The order matters and is the order of the calls here.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use mesh_api::worker::{StartFailed, ToSupervisor, to_supervisor};

use super::image::check;
use super::spawn::{FIRST_CGROUP, NETNS};
use super::{SandboxError, WORKER_COMMAND, limits, privileges, root, seccomp};
use crate::channel::{self, SUPERVISOR_END, WORKER_END};

/// Whether this process was started as a worker, from its command line.
#[must_use]
pub fn is_worker() -> bool {
    std::env::args_os()
        .nth(1)
        .is_some_and(|a| a == WORKER_COMMAND)
}

/// Turns this process, exec'd by [`super::spawn`], into a confined worker. It must be the
/// first thing that `main` does: no thread, no runtime, no secret exists yet.
///
/// Returns the worker's end of the channel, non-blocking. Afterwards standard streams are a
/// null device of the worker's own, descriptors 3 and 4 are the channel, and nothing else is
/// open.
///
/// # Errors
/// [`SandboxError`], which the supervisor was already told by `StartFailed`. The caller must
/// exit at once, for the process may still be privileged.
pub fn become_worker() -> Result<OwnedFd, SandboxError> {
    let arguments = Arguments::parse(std::env::args_os().skip(1))?;
    let channel = take_channel()?;
    match confine(&arguments) {
        Ok(()) => Ok(channel),
        Err(error) => {
            let failed = StartFailed {
                why: error.to_string(),
            };
            let message = to_supervisor::Message::StartFailed(failed);
            let message = ToSupervisor {
                message: Some(message),
            };
            // Without a listener there is nobody to tell; the exit says the rest.
            let _ = channel::send_now(channel.as_fd(), &message);
            Err(error)
        }
    }
}

fn confine(arguments: &Arguments) -> Result<(), SandboxError> {
    let step = |step| move |source| SandboxError::Confine { step, source };
    require_single_thread()?;
    join_cgroups(arguments.cgroups).map_err(step("joining the pod's cgroups"))?;
    setns(inherited(NETNS), CloneFlags::CLONE_NEWNET)
        .map_err(|e| step("entering the pod's network namespace")(e.into()))?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(|e| step("making namespaces of its own")(e.into()))?;
    limits::set().map_err(step("setting resource limits"))?;
    root::empty().map_err(step("entering an empty root"))?;
    // SAFETY: nothing in this process owns a descriptor from 5 on: they were inherited, and
    // what was opened here is closed by now.
    check(unsafe { libc::close_range(NETNS.unsigned_abs(), u32::MAX, 0) })
        .map_err(step("closing inherited descriptors"))?;
    privileges::drop_all(arguments.uid, arguments.gid)?;
    privileges::landlock()?;
    privileges::refuse_new_code().map_err(step("refusing executable memory"))?;
    privileges::verify(arguments.uid, arguments.gid)?;
    seccomp::install().map_err(step("installing the system call filter"))
}

struct Arguments {
    uid: u32,
    gid: u32,
    cgroups: u8,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, SandboxError> {
        let command = arguments.next();
        if command.is_none_or(|command| command != WORKER_COMMAND) {
            return Err(SandboxError::Arguments("another command was given".into()));
        }
        let mut number = |what: &str| {
            let text = arguments.next().unwrap_or_default();
            let text = text.to_string_lossy();
            let number: Option<u32> = text.parse().ok();
            number.ok_or_else(|| SandboxError::Arguments(format!("{what} is `{text}`")))
        };
        let (uid, gid, cgroups) = (number("uid")?, number("gid")?, number("cgroups")?);
        // 4294967295 means "unchanged" to setresuid.
        if [uid, gid].iter().any(|id| [0, u32::MAX].contains(id)) {
            let what = format!("uid {uid}, gid {gid}: both must be unprivileged");
            return Err(SandboxError::Arguments(what));
        }
        let cgroups = u8::try_from(cgroups).ok().filter(|n| *n > 0);
        let cgroups = cgroups.ok_or_else(|| SandboxError::Arguments("no cgroup to join".into()))?;
        Ok(Self { uid, gid, cgroups })
    }
}

/// The worker's end.
fn take_channel() -> Result<OwnedFd, SandboxError> {
    for end in [WORKER_END, SUPERVISOR_END] {
        let kind = getsockopt(&inherited(end), sockopt::SockType);
        if kind != Ok(SockType::SeqPacket) {
            let what = format!("descriptor {end} is no channel ({kind:?})");
            return Err(SandboxError::Arguments(what));
        }
    }
    set_cloexec([WORKER_END, SUPERVISOR_END]).map_err(|source| SandboxError::Confine {
        step: "keeping the channel",
        source,
    })?;
    // SAFETY: the descriptor is open, as just seen, and this is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(WORKER_END) })
}

fn set_cloexec(fds: [RawFd; 2]) -> io::Result<()> {
    fds.into_iter().try_for_each(|fd| {
        // SAFETY: F_SETFD takes an integer.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
    })
}

fn inherited(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: `spawn` puts these descriptors there, and nothing closes them before
    // `close_range`; a process started otherwise gets EBADF from the first call.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

pub(crate) fn require_single_thread() -> Result<(), SandboxError> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(|source| SandboxError::Confine {
            step: "counting threads",
            source,
        })?
        .count();
    if threads == 1 {
        return Ok(());
    }
    Err(SandboxError::Unconfined(format!(
        "{threads} threads exist, and only one of them would be confined"
    )))
}

fn join_cgroups(count: u8) -> io::Result<()> {
    for fd in (FIRST_CGROUP..).take(usize::from(count)) {
        // SAFETY: inherited from `spawn`, owned by nobody else, and closed here.
        let mut procs = unsafe { File::from_raw_fd(fd) };
        procs.write_all(b"0")?;
    }
    Ok(())
}

/// `spawn` lays the descriptors out in this order.
const _: () = assert!(WORKER_END == 3 && SUPERVISOR_END == 4 && NETNS == 5 && FIRST_CGROUP == 6);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, SandboxError> {
        Arguments::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn only_an_unprivileged_worker_with_a_cgroup_is_accepted() {
        let arguments = parse("worker 3900000001 3900000001 2").unwrap();
        assert_eq!((arguments.uid, arguments.cgroups), (3_900_000_001, 2));
        for line in [
            "run",
            "worker",
            "worker 0 1 1",
            "worker 1 0 1",
            "worker 4294967295 1 1",
            "worker 1 1 0",
            "worker 1 1 -1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
