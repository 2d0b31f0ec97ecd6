//! Loading a program by hand: the smallest ones, to ask the kernel what it knows, and ours with
//! a log of the verifier, which aya gives of programs only that were refused.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use aya_obj::generated::{
    BPF_CALL, BPF_EXIT, BPF_JMP, BPF_K, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type,
};

/// What `BPF_PROG_LOAD` is given.
pub(super) struct Load<'a> {
    pub(super) kind: bpf_prog_type,
    pub(super) attach_type: Option<bpf_attach_type>,
    pub(super) instructions: &'a [bpf_insn],
    pub(super) license: &'a CStr,
}

/// How much the verifier tells, as in `linux/bpf_verifier.h`.
#[derive(Clone, Copy)]
pub(super) enum Level {
    /// Nothing but what it refuses.
    Refusal = 1,
    /// Every instruction on every path, and the statistics.
    Everything = 2 | 4,
}

/// Loads a program. Gives the verifier's log as well, in `log`, which says how long it may be.
pub(super) fn load(what: &Load<'_>, level: Level, log: &mut Vec<u8>) -> io::Result<OwnedFd> {
    // SAFETY: all zeroes are attributes.
    let mut attributes = unsafe { std::mem::zeroed::<bpf_attr>() };
    log.fill(0);
    {
        // SAFETY: of zeroes every member of the union is a value.
        let load = unsafe { &mut attributes.__bindgen_anon_3 };
        load.prog_type = what.kind as u32;
        load.expected_attach_type = what.attach_type.map_or(0, |attach_type| attach_type as u32);
        load.insns = what.instructions.as_ptr() as u64;
        load.insn_cnt = length(what.instructions.len())?;
        load.license = what.license.as_ptr() as u64;
        load.log_level = level as u32;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = length(log.len())?;
    }
    let loaded = bpf(bpf_cmd::BPF_PROG_LOAD, &attributes).map(descriptor);
    log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(log.len()));
    loaded
}

/// `return 1`, which every kind of program may.
pub(super) fn smallest() -> [bpf_insn; 2] {
    // MOV and ALU64 of linux/bpf_common.h and linux/bpf.h.
    const MOV64: u32 = 0xb7;
    [instruction(MOV64, 1), instruction(BPF_JMP | BPF_EXIT, 0)]
}

/// A program that calls a helper with arguments that the verifier refuses, if it gets that far.
pub(super) fn calling(helper: u32) -> [bpf_insn; 2] {
    let number = i32::from_ne_bytes(helper.to_ne_bytes());
    [
        instruction(BPF_JMP | BPF_CALL | BPF_K, number),
        instruction(BPF_JMP | BPF_EXIT, 0),
    ]
}

fn instruction(code: u32, value: i32) -> bpf_insn {
    let code = u8::try_from(code).expect("codes are bytes");
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: value,
    }
}

fn length(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(io::Error::other)
}

fn descriptor(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn bpf(command: bpf_cmd, attributes: &bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the size is that of the attributes, and every pointer in them is to memory that
    // outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_ref(attributes),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(RawFd::try_from(result).expect("bpf(2) returns descriptors and zero"))
}
