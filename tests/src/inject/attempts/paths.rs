//! Opening and touching files by name.

use super::Control::{Fails, NotRefused, Succeeds};
use super::{Attempt, CHANNEL, CWD, NOWHERE, Surroundings, attempt, c_string, int, words};
use crate::inject::DATA;

#[rustfmt::skip] // One attempt a line.
pub(super) fn opened(around: &Surroundings<'_>) -> Vec<Attempt> {
    let open = |name, path: &[u8], flags, control| {
        let name = format!("openat of {name}");
        attempt(&name, libc::SYS_openat, &[CWD, DATA, int(flags), 0], path, control)
    };
    let procs = c_string(around.root_cgroup_procs);
    let environment = format!("/proc/{}/environ\0", around.victim);
    // struct open_how, then the path.
    let how = [words(&[0, 0, 0]), b"/\0".to_vec()].concat();
    let handle = [CWD, DATA, DATA + 64, DATA + 72, 0];
    vec![
        open("the root", b"/\0", libc::O_RDONLY, Succeeds),
        open("the root as O_PATH", b"/\0", libc::O_PATH, Succeeds),
        open("its folder", b".\0", libc::O_RDONLY, Succeeds),
        open("a parent folder", b"../..\0", libc::O_RDONLY, Succeeds),
        open("another worker's environment", environment.as_bytes(), libc::O_RDONLY, Succeeds),
        open("PID 1's environment", b"/proc/1/environ\0", libc::O_RDONLY, NotRefused),
        open("its own memory", b"/proc/self/mem\0", libc::O_RDWR, Succeeds),
        open("the cgroups' root", &procs, libc::O_WRONLY, Succeeds),
        open("a nameless file", b"/tmp\0", libc::O_TMPFILE | libc::O_WRONLY, Succeeds),
        attempt("open", libc::SYS_open, &[DATA, 0], b"/\0", Succeeds),
        attempt("openat2", libc::SYS_openat2, &[CWD, DATA + 24, DATA, 24], &how, Succeeds),
        attempt("creat", libc::SYS_creat, &[DATA, 0], NOWHERE, Fails(libc::ENOENT)),
        attempt("open_by_handle_at", libc::SYS_open_by_handle_at, &[CHANNEL, DATA, 0], &[0; 16], NotRefused),
        attempt("name_to_handle_at", libc::SYS_name_to_handle_at, &handle, &[0; 96], NotRefused),
        attempt("open_tree", libc::SYS_open_tree, &[CWD, DATA, 0], b"/\0", Succeeds),
        attempt("fsopen", libc::SYS_fsopen, &[DATA, 0], b"tmpfs\0", Succeeds),
    ]
}

#[rustfmt::skip] // One attempt a line.
pub(super) fn touched() -> Vec<Attempt> {
    let absent = Fails(libc::ENOENT);
    let space = [0; 256];
    let stat = [space.as_slice(), b"/\0"].concat();
    vec![
        attempt("stat", libc::SYS_stat, &[DATA + 256, DATA], &stat, Succeeds),
        attempt("newfstatat", libc::SYS_newfstatat, &[CWD, DATA + 256, DATA, 0], &stat, Succeeds),
        attempt("statx", libc::SYS_statx, &[CWD, DATA + 256, 0, 0, DATA], &stat, Succeeds),
        attempt("access", libc::SYS_access, &[DATA, 0], b"/\0", Succeeds),
        attempt("readlink", libc::SYS_readlink, &[DATA, DATA, 16], NOWHERE, absent),
        attempt("getcwd", libc::SYS_getcwd, &[DATA, 256], &space, Succeeds),
        attempt("chdir", libc::SYS_chdir, &[DATA], b"/\0", Succeeds),
        attempt("chroot", libc::SYS_chroot, &[DATA], b"/\0", Succeeds),
        attempt("mkdir", libc::SYS_mkdir, &[DATA, 0], NOWHERE, absent),
        attempt("mknod", libc::SYS_mknod, &[DATA, 0, 0], NOWHERE, absent),
        attempt("unlink", libc::SYS_unlink, &[DATA], NOWHERE, absent),
        attempt("rename", libc::SYS_rename, &[DATA, DATA], NOWHERE, absent),
        attempt("symlink", libc::SYS_symlink, &[DATA, DATA], NOWHERE, absent),
        attempt("truncate", libc::SYS_truncate, &[DATA, 0], NOWHERE, absent),
        attempt("chmod", libc::SYS_chmod, &[DATA, 0], NOWHERE, absent),
        attempt("mount", libc::SYS_mount, &[0, DATA, DATA, 0, 0], NOWHERE, absent),
        attempt("umount", libc::SYS_umount2, &[DATA, 0], NOWHERE, absent),
        attempt("pivot_root", libc::SYS_pivot_root, &[DATA, DATA], NOWHERE, absent),
        attempt("inotify_init1", libc::SYS_inotify_init1, &[0], &[], Succeeds),
        attempt("fanotify_init", libc::SYS_fanotify_init, &[0, 0], &[], NotRefused),
    ]
}
