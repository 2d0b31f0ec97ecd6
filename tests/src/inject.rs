//! Makes a live process issue system calls of the test's choice, as if whoever took it over
//! had issued them: a root tracer writes its registers, steps over a `syscall` instruction of
//! its own text, reads the result and puts everything back.
//!
//! What the sandbox refuses is thereby asked of the very process that serves production
//! traffic, with its filter, its ids and its namespaces, and not of a model of it.

mod attempts;
mod capability;
mod spin;

pub use attempts::{
    Attempt, Call, Control, Surroundings, attempts, behind_the_supervisors_filter, on_a_supervisor,
    second_line,
};
pub use capability::{capabilities, drop_capability};
pub use spin::Spinning;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use libc::{c_long, c_void, pid_t, user_regs_struct};

/// An argument (or an aligned word of the data) of `DATA + n` becomes the address of byte `n`
/// of the call's data in the traced process.
pub const DATA: u64 = 0x4e4d_d47a_0000_0000;

/// Longest data of a call, in bytes.
pub const MAX_DATA: usize = 64 * 1024;

/// Issues one system call from the process `pid`, whose only (or main) thread is traced for
/// that long. Returns what the call returned; a negative number is `-errno`.
///
/// # Errors
/// If the process can't be traced (the tracer must be root) or ended meanwhile.
pub fn inject(pid: pid_t, nr: c_long, args: [u64; 6], data: &[u8]) -> io::Result<i64> {
    Tracee::seize(pid)?.call(nr, args, data)
}

/// A stopped process. It goes on, unharmed, when this is dropped.
#[derive(Debug)]
pub struct Tracee {
    pid: pid_t,
    memory: File,
    registers: user_regs_struct,
    /// Address of a `syscall` instruction.
    instruction: u64,
}

impl Tracee {
    /// Stops `pid` for tracing. All calls must come from the thread that made it.
    ///
    /// # Errors
    /// Whatever the tracing gives; `Unsupported` on other than `x86_64`.
    pub fn seize(pid: pid_t) -> io::Result<Self> {
        Self::seize_with(pid, 0)
    }

    /// As [`Tracee::seize`], with the process's seccomp filter out of force while it is
    /// traced: what is refused then is refused by something else.
    ///
    /// # Errors
    /// `EINVAL` on a kernel without `CONFIG_CHECKPOINT_RESTORE`.
    pub fn seize_without_seccomp(pid: pid_t) -> io::Result<Self> {
        Self::seize_with(pid, PTRACE_O_SUSPEND_SECCOMP)
    }

    fn seize_with(pid: pid_t, options: u64) -> io::Result<Self> {
        let instruction = find_syscall(pid)?;
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        request(libc::PTRACE_SEIZE, pid, 0, options)?;
        request(libc::PTRACE_INTERRUPT, pid, 0, 0)?;
        let mut tracee = Self {
            pid,
            memory,
            // SAFETY: all-zero is a valid value of these integers.
            registers: unsafe { std::mem::zeroed() },
            instruction,
        };
        tracee.wait_for_trap()?;
        tracee.registers = tracee.get_registers()?;
        Ok(tracee)
    }

    /// Issues one system call; see [`inject`].
    ///
    /// # Errors
    /// If the process ended, or stopped for another reason than the call's end.
    pub fn call(&mut self, nr: c_long, args: [u64; 6], data: &[u8]) -> io::Result<i64> {
        let address = self.place(data)?;
        let [rdi, rsi, rdx, r10, r8, r9] = args.map(|arg| relocate(arg, address, data.len()));
        let registers = user_regs_struct {
            rax: nr.cast_unsigned(),
            // No system call is being restarted: this one begins here.
            orig_rax: u64::MAX,
            rip: self.instruction,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        };
        self.set_registers(&registers)?;
        request(libc::PTRACE_SINGLESTEP, self.pid, 0, 0)?;
        self.wait_for_trap()?;
        let result = self.get_registers()?;
        self.set_registers(&self.registers)?;
        if result.rip != self.instruction + SYSCALL.len() as u64 {
            let what = format!("stopped at {:#x}, not after the call", result.rip);
            return Err(io::Error::other(what));
        }
        Ok(result.rax.cast_signed())
    }

    /// Makes an attempt: its preparation, which must work, and then the call itself, whose
    /// result is returned.
    ///
    /// # Errors
    /// As [`Tracee::call`], or if the preparation is refused.
    pub fn attempt(&mut self, attempt: &Attempt) -> io::Result<i64> {
        let mut prepared = 0;
        if let Some(call) = &attempt.prepare {
            prepared = self.call(call.nr, call.args, &call.data)?;
            if prepared < 0 {
                let what = format!("preparing \"{}\" gave {prepared}", attempt.name);
                return Err(io::Error::other(what));
            }
        }
        let call = attempt.call.after(prepared);
        self.call(call.nr, call.args, &call.data)
    }

    /// Writes the data below the stack, clear of the red zone, and returns its address.
    fn place(&self, data: &[u8]) -> io::Result<u64> {
        if data.len() > MAX_DATA {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too much data"));
        }
        let below = 4096 + data.len() as u64;
        let address = (self.registers.rsp - below) & !63;
        let mut placed = data.to_vec();
        for word in placed.chunks_exact_mut(8) {
            let value = u64::from_ne_bytes(word.try_into().expect("8 bytes"));
            word.copy_from_slice(&relocate(value, address, data.len()).to_ne_bytes());
        }
        self.memory.write_all_at(&placed, address)?;
        Ok(address)
    }

    fn wait_for_trap(&self) -> io::Result<()> {
        let mut status = 0;
        // SAFETY: a live integer to write to.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        if waited < 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP {
            return Ok(());
        }
        let what = format!(
            "process {} did not stop for us: status {status:#x}",
            self.pid
        );
        Err(io::Error::other(what))
    }

    fn get_registers(&self) -> io::Result<user_regs_struct> {
        // SAFETY: all-zero is a valid value of these integers.
        let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
        let address = (&raw mut registers) as u64;
        request(libc::PTRACE_GETREGS, self.pid, 0, address)?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &user_regs_struct) -> io::Result<()> {
        request(
            libc::PTRACE_SETREGS,
            self.pid,
            0,
            std::ptr::from_ref(registers) as u64,
        )
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // The registers are as they were, so a call that our stop interrupted is restarted. A
        // process that has ended is nobody's to release.
        let _ = request(libc::PTRACE_DETACH, self.pid, 0, 0);
    }
}

/// `linux/ptrace.h`.
const PTRACE_O_SUSPEND_SECCOMP: u64 = 1 << 21;
const SYSCALL: [u8; 2] = [0x0f, 0x05];

fn relocate(value: u64, address: u64, len: usize) -> u64 {
    match value.checked_sub(DATA) {
        Some(offset) if offset <= len as u64 => address + offset,
        _ => value,
    }
}

fn request(request: libc::c_uint, pid: pid_t, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: the requests made here take integers or a pointer to live registers.
    let result = unsafe { libc::ptrace(request, pid, address as *mut c_void, data as *mut c_void) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Address of a `syscall` instruction: in the vDSO, which every process has, or else in any
/// executable mapping.
fn find_syscall(pid: pid_t) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut mappings: Vec<&str> = maps.lines().filter(|l| l.contains(" r-xp ")).collect();
    mappings.sort_by_key(|line| !line.ends_with("[vdso]"));
    for line in mappings {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let parse = |hex| u64::from_str_radix(hex, 16).ok();
        let Some((Some(start), Some(end))) = range.map(|(a, b)| (parse(a), parse(b))) else {
            continue;
        };
        let mut text = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        if memory.read_exact_at(&mut text, start).is_err() {
            continue;
        }
        let found = text
            .windows(SYSCALL.len())
            .position(|bytes| bytes == SYSCALL);
        if let Some(offset) = found {
            return Ok(start + offset as u64);
        }
    }
    let what = format!("process {pid} has no syscall instruction in its text");
    Err(io::Error::new(io::ErrorKind::NotFound, what))
}
