//! Process 1 of a guest. Linked statically, so that it can say what is wrong when nothing
//! else in the initramfs works: mounts the file systems, loads modules, runs
//! `mesh-vm-guest` as its child, and ends the machine with a status that the host reads.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Loaded at once: the devices of the machine. The kernel asks for the others by itself.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "nf_tables",
];
/// I/O port of QEMU's `isa-debug-exit`: writing `n` ends QEMU with status `2n + 1`.
const EXIT_PORT: libc::c_ushort = 0x501;
/// The guest's runner has said all it had to.
const DONE: u8 = 16;
/// It could not.
const FAILED: u8 = 17;

fn main() {
    let status = match run() {
        Ok(status) if status.success() => DONE,
        Ok(status) => {
            eprintln!("init: mesh-vm-guest: {status}");
            FAILED
        }
        Err(e) => {
            eprintln!("init: {e}");
            FAILED
        }
    };
    end(status)
}

fn run() -> io::Result<ExitStatus> {
    mount_all()?;
    fs::write("/proc/sys/kernel/modprobe", "/usr/sbin/modprobe")?;
    let modprobe = Command::new("/usr/sbin/modprobe")
        .arg("-a")
        .args(MODULES)
        .status()?;
    if !modprobe.success() {
        eprintln!("init: modprobe {MODULES:?}: {modprobe}");
    }
    let interactive = fs::read_to_string("/proc/cmdline")?.contains("nodemesh.keep");
    let ended = child(Command::new("/usr/bin/mesh-vm-guest"))?;
    if interactive {
        eprintln!("init: the guest stays; `exit` ends it");
        let mut shell = Command::new("/bin/busybox");
        shell.args(["setsid", "-c", "/bin/busybox", "sh"]);
        child(shell)?;
    }
    Ok(ended)
}

fn mount_all() -> io::Result<()> {
    for (kind, at, options) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("devtmpfs", "/dev", ""),
        ("tmpfs", "/run", "mode=0755"),
        ("tmpfs", "/tmp", "mode=1777"),
        ("tmpfs", "/var", "mode=0755"),
        ("devpts", "/dev/pts", ""),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", "nsdelegate"),
        ("bpf", "/sys/fs/bpf", "mode=0700"),
    ] {
        if !Path::new(at).is_dir() {
            fs::create_dir_all(at)?;
        }
        match mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options)) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(e) => return Err(io::Error::other(format!("mounting {kind} on {at}: {e}"))),
        }
    }
    // What a distribution's init does: names for the own descriptors, and the root's controllers, for whom it delegates to.
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, Path::new("/dev").join(name))?;
    }
    symlink("/run", "/var/run")?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +pids")?;
    if let Err(e) = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory") {
        eprintln!("init: no memory controller: {e}");
    }
    for folder in ["/var/log", "/var/lib", "/run/netns"] {
        fs::create_dir_all(folder)?;
    }
    Ok(())
}

/// Runs a child, and reaps every orphan until it ends.
fn child(mut command: Command) -> io::Result<ExitStatus> {
    command.env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/tmp");
    command.env("RUST_BACKTRACE", "1");
    // Of the lab's waits (`mesh_lab::wait`): everything is emulated here.
    command.env("NODEMESH_PATIENCE_FACTOR", "6");
    let child = command
        .spawn()
        .map_err(|e| io::Error::other(format!("starting {:?}: {e}", command.get_program())))?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                return Ok(ExitStatus::from_raw(code << 8));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Ends the machine.
fn end(status: u8) -> ! {
    nix::unistd::sync();
    // SAFETY: this is process 1 of a throw-away machine and may use its I/O ports; the port is
    // that of a device which QEMU is always started with.
    unsafe {
        libc::ioperm(EXIT_PORT.into(), 1, 1);
        std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") status);
    }
    // Without that device the kernel panics when process 1 ends, and `panic=-1` reboots.
    std::process::exit(1)
}
