//! The executable that workers run: a sealed copy, so that neither an upgrade of the file
//! on disk nor a write to it reaches a worker, and the container's mounts are not held.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};

use super::SandboxError;

/// Name of the memfd, as `/proc/<pid>/exe` of a worker shows it.
pub(super) const IMAGE_NAME: &CStr = c"nodemesh-worker";

/// A sealed, immutable copy of an executable, opened for reading only (a file that is open
/// for writing can't be exec'd) and close-on-exec.
#[derive(Debug)]
pub struct WorkerImage {
    fd: OwnedFd,
    digest: ImageDigest,
}

/// SHA-256 of an image: whether two workers run the same program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageDigest([u8; 32]);

impl ImageDigest {
    /// Of what is left of a file; each piece is passed on as well.
    pub(super) fn of(
        mut source: impl Read,
        mut copy: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut context = Context::new(&SHA256);
        let mut piece = vec![0; 256 << 10];
        loop {
            match source.read(&mut piece)? {
                0 => break,
                n => {
                    context.update(&piece[..n]);
                    copy(&piece[..n])?;
                }
            }
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Ok(Self(digest))
    }
}

impl WorkerImage {
    /// A copy of this process's own executable, also when the file was replaced or removed.
    ///
    /// # Errors
    /// [`SandboxError::Image`].
    pub fn seal() -> Result<Self, SandboxError> {
        Self::seal_file(Path::new("/proc/self/exe"))
    }

    /// A copy of `executable`, which must treat [`super::WORKER_COMMAND`] as this one does.
    ///
    /// # Errors
    /// [`SandboxError::Image`].
    pub fn seal_file(executable: &Path) -> Result<Self, SandboxError> {
        let failed = |step| {
            move |source| SandboxError::Image {
                executable: executable.display().to_string(),
                step,
                source,
            }
        };
        let source = File::open(executable).map_err(failed("open"))?;
        let mut copy = File::from(memfd_exec().map_err(failed("memfd_create"))?);
        let digest = ImageDigest::of(source, |piece| copy.write_all(piece));
        let digest = digest.map_err(failed("copy"))?;
        // SAFETY: fchmod on a descriptor we own. 0511: whoever execs it without being able to
        // read it becomes non-dumpable at once.
        check(unsafe { libc::fchmod(copy.as_raw_fd(), 0o511) }).map_err(failed("fchmod"))?;
        let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE;
        seal(&copy, F_SEAL_EXEC)
            .or_else(ignore_unknown)
            .map_err(failed("seal the mode"))?;
        seal(&copy, seals | libc::F_SEAL_SEAL).map_err(failed("seal the contents"))?;
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let read_only = File::open(path).map_err(failed("reopen for reading"))?;
        let high = nix::fcntl::fcntl(&read_only, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(64))
            .map_err(|errno| failed("fcntl")(errno.into()))?;
        // SAFETY: fcntl has just made this descriptor for us. It is high so that the worker's
        // inherited descriptors never take its place between spawn and exec.
        let fd = unsafe { OwnedFd::from_raw_fd(high) };
        Ok(Self { fd, digest })
    }

    /// What is in it.
    #[must_use]
    pub fn digest(&self) -> ImageDigest {
        self.digest
    }
}

impl AsFd for WorkerImage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Linux 6.3, `linux/fcntl.h`.
const F_SEAL_EXEC: libc::c_int = 0x20;
/// Linux 6.3, `linux/memfd.h`; needed where `vm.memfd_noexec` is set.
const MFD_EXEC: libc::c_uint = 0x10;

fn memfd_exec() -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a constant C string and flags.
    let mut fd = unsafe { libc::memfd_create(IMAGE_NAME.as_ptr(), flags | MFD_EXEC) };
    if fd < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        // SAFETY: as above.
        fd = unsafe { libc::memfd_create(IMAGE_NAME.as_ptr(), flags) };
    }
    check(fd)?;
    // SAFETY: memfd_create has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn seal(file: &File, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: F_ADD_SEALS takes an integer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

fn ignore_unknown(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::EINVAL) {
        return Ok(());
    }
    Err(error)
}

/// The result of a system call, as errno says.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
