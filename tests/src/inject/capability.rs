//! A process with a capability less.

use std::fs;
use std::io;

use libc::pid_t;

use super::{DATA, Tracee};

/// The capabilities that a process may use, as a set of bits (`linux/capability.h`).
///
/// # Errors
/// If `/proc` does not tell.
pub fn capabilities(pid: pid_t) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.ok_or_else(|| io::Error::other("no CapEff"))?;
    u64::from_str_radix(effective.trim(), 16).map_err(io::Error::other)
}

/// Takes a capability, by its number, from a process and from whatever it execs.
///
/// # Errors
/// As [`Tracee::call`], or if the process keeps it.
pub fn drop_capability(pid: pid_t, number: u8) -> io::Result<()> {
    let kept = capabilities(pid)? & !(1 << number);
    let mut seized = Tracee::seize(pid)?;
    let give_up = libc::PR_CAPBSET_DROP.unsigned_abs().into();
    let dropped = seized.call(libc::SYS_prctl, [give_up, number.into(), 0, 0, 0, 0], &[])?;
    let [a, b, c, d, high @ ..] = kept.to_ne_bytes();
    let low = [a, b, c, d];
    // Version 3, this process; effective, permitted, inheritable: low halves, then high ones.
    let sets = [low, low, [0; 4], high, high, [0; 4]].concat();
    let data = [0x2008_0522_u64.to_ne_bytes().to_vec(), sets].concat();
    let args = [DATA, DATA + 8, 0, 0, 0, 0];
    let set = seized.call(libc::SYS_capset, args, &data)?;
    drop(seized);
    match (dropped, set, capabilities(pid)? == kept) {
        (0, 0, true) => Ok(()),
        _ => Err(io::Error::other(format!(
            "process {pid} keeps capability {number}: prctl {dropped}, capset {set}"
        ))),
    }
}
