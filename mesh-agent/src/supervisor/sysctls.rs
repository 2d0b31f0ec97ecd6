//! Kernel settings from within a container, which sees `/proc/sys` read-only.

use std::io;

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};

const FOLDER: &str = "/proc/sys";

/// Makes `/proc/sys` writable where this process alone sees it read-only, as in a container that is not
/// `privileged`: the mesh's ports are reserved there, in pods' namespaces.
///
/// # Errors
/// If the kernel refuses that; it takes `CAP_SYS_ADMIN`.
pub(super) fn make_writable() -> io::Result<()> {
    if !statvfs(FOLDER)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    // Of the mount, and not of the file system, which is the machine's.
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    Ok(mount(
        None::<&str>,
        FOLDER,
        None::<&str>,
        flags,
        None::<&str>,
    )?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    const SETTING: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

    /// As a container runtime leaves it, in a mount namespace of this thread's own.
    fn contain() -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none)?;
        mount(Some(FOLDER), FOLDER, none, MsFlags::MS_BIND, none)?;
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, FOLDER, none, read_only, none)
    }

    #[test]
    fn what_a_runtime_made_read_only_is_writable() {
        let contained = || {
            contain().unwrap();
            let refused = fs::write(SETTING, "15001\n").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            make_writable().unwrap();
            fs::write(SETTING, "15001\n").unwrap();
            // Nothing is left to do.
            make_writable().unwrap();
        };
        thread::scope(|scope| scope.spawn(contained).join()).unwrap();
    }
}
