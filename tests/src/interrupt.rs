//! SIGINT and SIGTERM: what the labs of this process made is removed before it ends.

use std::io::Read;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once};
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::removal;

static PIPE: AtomicI32 = AtomicI32::new(-1);
static PREFIXES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has everything with this prefix removed when a signal ends the process.
pub(crate) fn watch(prefix: &str) {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    prefixes().push(prefix.to_owned());
}

/// The lab has removed its things itself.
pub(crate) fn forget(prefix: &str) {
    prefixes().retain(|p| p != prefix);
}

fn prefixes() -> std::sync::MutexGuard<'static, Vec<String>> {
    PREFIXES
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = u8::try_from(signal).unwrap_or(15);
    // SAFETY: `write` is async-signal-safe, the byte lives on this stack.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

fn install() {
    let (read, write): (OwnedFd, OwnedFd) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe for signals");
    PIPE.store(write.into_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(
        SigHandler::Handler(on_signal),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only loads an atomic and writes to a pipe.
        unsafe { sigaction(signal, &action) }.expect("a signal handler");
    }
    thread::spawn(move || {
        let mut byte = [0];
        if std::fs::File::from(read).read_exact(&mut byte).is_ok() {
            eprintln!("\ninterrupted: cleaning up");
            for prefix in prefixes().iter() {
                removal::remove(prefix);
            }
            std::process::exit(128 + i32::from(byte[0]));
        }
    });
}
