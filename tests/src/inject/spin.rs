//! A process that does nothing but run in a circle.

use std::io;
use std::os::unix::fs::FileExt;

use libc::pid_t;

use super::Tracee;

/// `jmp` to itself.
const JUMP_TO_ITSELF: [u8; 2] = [0xeb, 0xfe];

/// A process that spins; it goes on where it was when this is dropped.
#[derive(Debug)]
pub struct Spinning {
    pid: pid_t,
    address: u64,
    was: [u8; 2],
}

impl Spinning {
    /// Writes a jump to itself to where the process will go on next.
    ///
    /// # Errors
    /// As [`Tracee::seize`].
    pub fn new(pid: pid_t) -> io::Result<Self> {
        let tracee = Tracee::seize(pid)?;
        let address = tracee.registers.rip;
        let mut was = [0; 2];
        tracee.memory.read_exact_at(&mut was, address)?;
        tracee.memory.write_all_at(&JUMP_TO_ITSELF, address)?;
        Ok(Self { pid, address, was })
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        // A process that has ended spins no more.
        if let Ok(tracee) = Tracee::seize(self.pid) {
            let _ = tracee.memory.write_all_at(&self.was, self.address);
        }
    }
}
