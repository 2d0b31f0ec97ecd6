//! A process, or one of its threads, that does nothing but run in a circle.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

use libc::{c_long, pid_t, user_regs_struct};

use super::Tracee;

/// `jmp` to itself.
const JUMP_TO_ITSELF: [u8; 2] = [0xeb, 0xfe];
/// Where it is put: the padding of the vDSO's ELF header, which is mapped executable and no
/// code. A jump in the program's own text would catch each thread that comes by.
const PADDING: u64 = 10;

/// A thread that spins; it goes on where it was when this is dropped.
#[derive(Debug)]
pub struct Spinning {
    thread: pid_t,
    /// What to go on with.
    registers: user_regs_struct,
}

impl Spinning {
    /// Has the main (or only) thread of a process go on in a circle; or another one, by its id.
    ///
    /// # Errors
    /// As [`Tracee::seize`], or if it has no vDSO.
    pub fn new(thread: pid_t) -> io::Result<Self> {
        Self::of(&Tracee::seize(thread)?)
    }

    /// As [`Self::new`], of the first of these threads that is found in no such system call:
    /// in one that waits for all of them, it would hold up all of them. None if all are in it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn outside(call: c_long, threads: &[pid_t]) -> io::Result<Option<Self>> {
        for thread in threads {
            let tracee = Tracee::seize(*thread)?;
            if tracee.registers.orig_rax != call.cast_unsigned() {
                return Self::of(&tracee).map(Some);
            }
        }
        Ok(None)
    }

    fn of(tracee: &Tracee) -> io::Result<Self> {
        let circle = vdso(tracee.pid)? + PADDING;
        tracee.memory.write_all_at(&JUMP_TO_ITSELF, circle)?;
        let registers = tracee.registers;
        tracee.set_registers(&user_regs_struct {
            rip: circle,
            // A call that the stop interrupted is restarted at the end, and not here.
            orig_rax: u64::MAX,
            ..registers
        })?;
        Ok(Self {
            thread: tracee.pid,
            registers,
        })
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        // A process that has ended spins no more.
        if let Ok(tracee) = Tracee::seize(self.thread) {
            let _ = tracee.set_registers(&self.registers);
        }
    }
}

/// Where the vDSO of a process begins.
fn vdso(pid: pid_t) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"));
    let start = line.and_then(|line| line.split('-').next());
    start
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{pid} has no vDSO")))
}
