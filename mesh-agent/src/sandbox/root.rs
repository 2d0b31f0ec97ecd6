//! An empty root: a read-only tmpfs in a mount namespace of the worker's own, with the
//! rest of the machine's mounts detached from it.

use std::ffi::{CStr, c_long, c_void};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use super::image::check;

/// Makes the empty root and enters it; standard streams become a null device of its own, so
/// that nothing of the container that the supervisor runs in is held.
pub(super) fn empty() -> io::Result<()> {
    // SAFETY: constant strings; a null source and type are allowed when changing propagation.
    check(unsafe {
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null())
    })?;
    let tmpfs = make_tmpfs()?;
    // SAFETY: descriptors and constant strings. The empty path means the mount itself.
    syscall(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tmpfs.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c"/".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    // SAFETY: a descriptor that is open.
    check(unsafe { libc::fchdir(tmpfs.as_raw_fd()) })?;
    own_null_device()?;
    enter()?;
    make_read_only(&tmpfs)?;
    match fs::read_dir("/")?.next() {
        None => Ok(()),
        Some(entry) => Err(io::Error::other(format!(
            "the root is not empty: {entry:?}"
        ))),
    }
}

/// `pivot_root(".", ".")` puts the old root on top of the new one, where it is detached. An
/// initramfs can't be pivoted away (`EINVAL`): there the new root covers it, and leaving a
/// chroot or unmounting takes privileges that the worker is about to lose.
fn enter() -> io::Result<()> {
    // SAFETY: constant strings.
    let pivoted =
        syscall(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) });
    match pivoted {
        // SAFETY: a constant string.
        Ok(()) => check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }).map(drop)?,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // SAFETY: a constant string.
            check(unsafe { libc::chroot(c".".as_ptr()) })?;
        }
        Err(error) => return Err(error),
    }
    // SAFETY: a constant string.
    check(unsafe { libc::chdir(c"/".as_ptr()) }).map(drop)
}

/// A tmpfs that is mounted nowhere yet.
fn make_tmpfs() -> io::Result<OwnedFd> {
    // SAFETY: a constant string and flags.
    let context =
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
    // Root's, who makes a device in it yet; it is made read-only after that.
    configure(&context, Some((c"mode", c"0700")))?;
    configure(&context, Some((c"size", c"4k")))?;
    configure(&context, Some((c"nr_inodes", c"4")))?;
    configure(&context, None)?;
    let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC;
    // SAFETY: a descriptor and flags.
    descriptor(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        )
    })
}

/// Sets one option, or, with none, creates the file system.
fn configure(context: &OwnedFd, option: Option<(&CStr, &CStr)>) -> io::Result<()> {
    let (command, key, value) = match option {
        Some((key, value)) => (FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr()),
        None => (FSCONFIG_CMD_CREATE, ptr::null(), ptr::null()),
    };
    // SAFETY: a descriptor and two C strings, or null where the command wants none.
    syscall(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            key,
            value,
            0,
        )
    })
}

/// Replaces the standard streams. The device's name is removed again.
fn own_null_device() -> io::Result<()> {
    // SAFETY: constant strings and plain numbers; the descriptors 0 to 2 are nobody's but
    // the standard library's, which expects them to be open, and they stay so.
    unsafe {
        check(libc::mknod(
            c"null".as_ptr(),
            libc::S_IFCHR | 0o600,
            libc::makedev(1, 3),
        ))?;
        let null = check(libc::open(c"null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC))?;
        let null = OwnedFd::from_raw_fd(null);
        check(libc::unlink(c"null".as_ptr()))?;
        for stream in 0..3 {
            check(libc::dup2(null.as_raw_fd(), stream))?;
        }
    }
    Ok(())
}

fn make_read_only(mount: &OwnedFd) -> io::Result<()> {
    let attributes = MountAttributes {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
        ..MountAttributes::default()
    };
    // SAFETY: a descriptor, an empty path, and a live struct of the size given.
    syscall(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            (&raw const attributes).cast::<c_void>(),
            size_of::<MountAttributes>(),
        )
    })
}

/// `struct mount_attr` (`linux/mount.h`, Linux 5.12).
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

// `linux/mount.h`, Linux 5.2.
const FSOPEN_CLOEXEC: c_long = 1;
const FSMOUNT_CLOEXEC: c_long = 1;
const FSCONFIG_SET_STRING: c_long = 1;
const FSCONFIG_CMD_CREATE: c_long = 6;
const MOVE_MOUNT_F_EMPTY_PATH: c_long = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;

fn syscall(result: c_long) -> io::Result<()> {
    check(i32::try_from(result).unwrap_or(-1)).map(drop)
}

fn descriptor(result: c_long) -> io::Result<OwnedFd> {
    let fd = check(i32::try_from(result).unwrap_or(-1))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
