//! One virtual machine, emulated.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_vm_tests::wire::{Asked, PORT, Said};
use nix::sys::signal::Signal;

/// Memory of a guest, in MiB; most of it is its file system.
const MEMORY_MIB: u32 = 1536;
/// How long QEMU may take to start.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Lines of the console that a failure shows.
const CONSOLE_LINES: usize = 60;

/// What a machine is made of.
pub(super) struct Parts<'a> {
    pub(super) vmlinux: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) kernel_args: &'a str,
    /// Its tap device and which node it is, on a network of two.
    pub(super) tap: Option<(&'a str, u8)>,
    /// The file that is its disk.
    pub(super) disk: Option<&'a Path>,
    /// The console is this terminal.
    pub(super) interactive: bool,
}

/// What a machine does, told to who runs it.
pub(super) enum Event {
    /// Its guest said something.
    Said(u8, Said),
    /// It is off, or its guest's line is closed.
    Gone(u8),
}

/// A running machine. Dropping it ends it.
pub(super) struct Machine {
    qemu: Child,
    line: UnixStream,
    folder: PathBuf,
}

impl Machine {
    /// Starts a machine whose sockets and logs go to `folder`. QEMU is started by, and in the
    /// network namespace of, the calling thread.
    pub(super) fn start(
        folder: &Path,
        node: u8,
        parts: &Parts<'_>,
        events: Sender<Event>,
    ) -> Result<Self> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
        let socket = folder.join("report");
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listening on {}", socket.display()))?;
        let mut command = qemu(parts, &socket, &folder.join("console.log"));
        let stderr = File::create(folder.join("qemu.log"))?;
        command.stderr(stderr);
        let mut qemu = command.spawn().context("starting qemu-system-x86_64")?;
        let line = match accept(&listener, &mut qemu) {
            Ok(line) => line,
            Err(e) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                let said = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
                return Err(e.context(said));
            }
        };
        let reader = line.try_clone()?;
        thread::spawn(move || {
            for text in BufReader::new(reader).lines().map_while(Result::ok) {
                match serde_json::from_str(&text) {
                    Ok(said) => {
                        if events.send(Event::Said(node, said)).is_err() {
                            return;
                        }
                    }
                    Err(e) => eprintln!("node {node} said {text:?}: {e}"),
                }
            }
            let _ = events.send(Event::Gone(node));
        });
        Ok(Self {
            qemu,
            line,
            folder: folder.to_owned(),
        })
    }

    /// Says something to the guest.
    pub(super) fn ask(&mut self, asked: &Asked) -> Result<()> {
        let mut text = serde_json::to_string(asked)?;
        text.push('\n');
        self.line.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Waits for the machine's end; what QEMU said of it.
    pub(super) fn ended(&mut self) -> String {
        match self.qemu.wait() {
            Ok(status) => match status.code() {
                Some(33) => "its init ended it".to_owned(),
                Some(35) => "its init ended it because mesh-vm-guest failed".to_owned(),
                Some(0) => "the kernel rebooted or panicked".to_owned(),
                _ => format!("qemu: {status}"),
            },
            Err(e) => format!("qemu: {e}"),
        }
    }

    /// The end of its console.
    pub(super) fn console(&self) -> String {
        let text = fs::read(self.folder.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }

    /// Ends it, whatever it does.
    pub(super) fn kill(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Emulated even where `/dev/kvm` opens: on the machines this was tried on, stock kernels
/// hang under it. One processor boots fastest.
fn qemu(parts: &Parts<'_>, socket: &Path, console: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-accel",
            "tcg,thread=multi",
            "-M",
            "q35",
            "-cpu",
            "max",
            "-smp",
            "1",
        ])
        .args([
            "-m",
            &format!("{MEMORY_MIB}M"),
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ])
        .args([
            "-display",
            "none",
            "-device",
            "isa-debug-exit,iobase=0x501,iosize=1",
        ])
        .arg("-kernel")
        .arg(parts.vmlinux)
        .arg("-initrd")
        .arg(parts.initramfs);
    let keep = if parts.interactive {
        " nodemesh.keep"
    } else {
        ""
    };
    command.arg("-append").arg(format!(
        "console=ttyS0 quiet panic=-1 {}{keep}",
        parts.kernel_args
    ));
    command
        .args(["-device", "virtio-serial-pci", "-device"])
        .arg(format!("virtserialport,chardev=report,name={PORT}"))
        .arg("-chardev")
        .arg(format!("socket,id=report,path={}", socket.display()));
    if parts.interactive {
        command.args(["-serial", "stdio"]);
    } else {
        command
            .arg("-serial")
            .arg(format!("file:{}", console.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    if let Some((tap, node)) = parts.tap {
        command
            .arg("-netdev")
            .arg(format!("tap,id=net,ifname={tap},script=no,downscript=no"))
            .arg("-device")
            .arg(format!(
                "virtio-net-pci,netdev=net,mac=52:54:00:00:00:{:02x}",
                node + 1
            ));
    }
    if let Some(disk) = parts.disk {
        // Its data outlive the guest, not this machine.
        command
            .arg("-drive")
            .arg(format!(
                "file={},format=raw,if=none,id=disk,cache=unsafe",
                disk.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk"]);
    }
    // A machine doesn't outlive who started it.
    let die = || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into);
    // SAFETY: one system call, nothing allocated.
    unsafe { command.pre_exec(die) };
    command
}

fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        match listener.accept() {
            Ok((line, _)) => {
                line.set_nonblocking(false)?;
                return Ok(line);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("qemu ended at once: {status}");
        }
        if Instant::now() > deadline {
            bail!(
                "qemu did not open its port in {} s",
                START_PATIENCE.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
}
