//! Taking the supervisor's end of the channel back out of a running worker.

use std::ffi::c_long;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::image::{IMAGE_NAME, ImageDigest, check};
use super::{Newborn, SandboxError};
use crate::channel;

/// What must be so of a process before it is taken for a pod's worker.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Path of the pod's cgroup in the cgroup v2 hierarchy ("/nodemesh-a/default_web").
    pub cgroup: &'a str,
    /// The worker's uid.
    pub uid: u32,
}

/// Adopts the worker `pid`, after verifying that it is in the expected cgroup, has the
/// expected uid and no other, runs a sealed image of ours, and that its descriptor
/// [`channel::SUPERVISOR_END`] is a channel that root made.
///
/// # Errors
/// [`SandboxError::NotOurs`] when a check fails, [`SandboxError::Adopt`] when a call does
/// (`ESRCH`: it ended meanwhile).
pub fn adopt(pid: i32, expected: Expected<'_>) -> Result<Newborn, SandboxError> {
    let failed = |step: &'static str| move |source| SandboxError::Adopt { pid, step, source };
    let pidfd = pidfd_open(pid).map_err(failed("pidfd_open"))?;
    let verdict = verify(pid, expected).map_err(failed("read /proc/<pid>"))?;
    // What was read belongs to this process only if it still lives: a pid is used again.
    if ended(&pidfd).map_err(failed("poll the pidfd"))? {
        let source = io::Error::from_raw_os_error(libc::ESRCH);
        return Err(failed("verify")(source));
    }
    verdict.map_err(|why| SandboxError::NotOurs { pid, why })?;
    let channel = take(&pidfd).map_err(failed("pidfd_getfd"))?;
    verify_channel(&channel).map_err(|why| SandboxError::NotOurs { pid, why })?;
    Ok(Newborn {
        pid,
        pidfd,
        channel,
    })
}

/// Which image a worker runs: the same for all that were started from one. The kernel's evidence,
/// for a seized worker may say what it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageId {
    device: u64,
    inode: u64,
}

/// Which image the process runs.
///
/// # Errors
/// If it has ended.
pub fn image_id(pid: i32) -> io::Result<ImageId> {
    let image = fs::metadata(format!("/proc/{pid}/exe"))?;
    Ok(ImageId {
        device: image.dev(),
        inode: image.ino(),
    })
}

/// What is in the image that the process runs. Reads all of it.
///
/// # Errors
/// If it has ended.
pub fn image_digest(pid: i32) -> io::Result<ImageDigest> {
    let image = File::open(format!("/proc/{pid}/exe"))?;
    ImageDigest::of(image, |_| Ok(()))
}

/// When a process was started, in clock ticks since the boot (proc(5), `stat`).
///
/// # Errors
/// If it has ended.
pub fn started(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, which may hold anything, ends with the last parenthesis; what follows it is field 3.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let started = fields.split_whitespace().nth(22 - 3);
    let started = started.and_then(|ticks| ticks.parse().ok());
    started.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "no start time in /proc/PID/stat",
        )
    })
}

fn verify(pid: i32, expected: Expected<'_>) -> io::Result<Result<(), String>> {
    let differs = |what, expected: &str, found: &str| {
        Ok(Err(format!("{what} is {found}, expected {expected}")))
    };
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    if cgroup != Some(expected.cgroup) {
        return differs("its cgroup", expected.cgroup, cgroup.unwrap_or("none"));
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uids = uids.unwrap_or_default().trim();
    let uid = expected.uid.to_string();
    if uids.split_whitespace().count() != 4 || uids.split_whitespace().any(|found| found != uid) {
        return differs("its uid", &uid, uids);
    }
    let exe = format!("/proc/{pid}/exe");
    let image = fs::read_link(&exe)?.to_string_lossy().into_owned();
    let ours = format!("/memfd:{} (deleted)", IMAGE_NAME.to_string_lossy());
    // SAFETY: F_GET_SEALS takes no argument.
    let seals = unsafe { libc::fcntl(File::open(&exe)?.as_raw_fd(), libc::F_GET_SEALS) };
    if image != ours || seals < 0 || seals & libc::F_SEAL_WRITE == 0 {
        return differs("its executable", &ours, &image);
    }
    Ok(Ok(()))
}

/// A seized worker can put any descriptor of its own in the channel's place, but it can't
/// make a `SOCK_SEQPACKET` pair: seccomp refuses, and the peer credentials would be its own.
fn verify_channel(channel: &OwnedFd) -> Result<(), String> {
    let kind = getsockopt(channel, sockopt::SockType).map_err(|e| format!("channel: {e}"))?;
    let peer =
        getsockopt(channel, sockopt::PeerCredentials).map_err(|e| format!("channel: {e}"))?;
    if kind != SockType::SeqPacket || peer.uid() != 0 {
        let found = format!("a {kind:?} socket of uid {}", peer.uid());
        return Err(format!("its descriptor 4 is {found}, no channel of ours"));
    }
    Ok(())
}

fn take(pidfd: &OwnedFd) -> io::Result<OwnedFd> {
    let end = c_long::from(channel::SUPERVISOR_END);
    // SAFETY: three integers; the kernel makes a close-on-exec descriptor.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), end, 0) })
}

pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two integers; the kernel makes a close-on-exec descriptor.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub(super) fn signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed: the kernel fills it as for kill().
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            no_info,
            0,
        )
    };
    check(i32::try_from(sent).unwrap_or(-1)).map(drop)
}

/// Whether the process of a pidfd has ended.
pub(super) fn ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut polled, PollTimeout::ZERO)? > 0)
}

fn descriptor(result: c_long) -> io::Result<OwnedFd> {
    let fd = check(i32::try_from(result).unwrap_or(-1))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
