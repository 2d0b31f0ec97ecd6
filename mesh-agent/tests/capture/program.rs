//! Programs that do nothing, to put in the place of others, and test runs of the walls.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub(crate) const SCHED_CLS: u32 = 3;
pub(crate) const CGROUP_SOCK_ADDR: u32 = 18;
pub(crate) const SK_LOOKUP: u32 = 30;
pub(crate) const ATTACH_INET4_CONNECT: u32 = 10;
pub(crate) const ATTACH_SK_LOOKUP: u32 = 36;
pub(crate) const ATTACH_TCX_INGRESS: u32 = 46;
pub(crate) const ATTACH_TCX_EGRESS: u32 = 47;

const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const PROG_TEST_RUN: i64 = 10;
const PROG_GET_FD_BY_ID: i64 = 13;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const LINK_CREATE: i64 = 28;
const LINK_UPDATE: i64 = 29;
const LINK_DETACH: i64 = 34;

/// A program that returns 1 at once (allow; pass; for tc: reclassify, so the caller says 0 there).
pub(crate) fn returning(kind: u32, attach_type: u32, value: i32) -> OwnedFd {
    load(kind, attach_type, &[set_result(value), EXIT]).unwrap()
}

/// Loads a program that calls a helper with its context, and returns 1.
pub(crate) fn calling(kind: u32, attach_type: u32, helper: u32) -> io::Result<OwnedFd> {
    let call = 0x85 | (u64::from(helper) << 32);
    load(kind, attach_type, &[call, set_result(1), EXIT])
}

const EXIT: u64 = 0x95;

/// mov64 r0, value
fn set_result(value: i32) -> u64 {
    0xb7 | (u64::from(value.cast_unsigned()) << 32)
}

fn load(kind: u32, attach_type: u32, code: &[u64]) -> io::Result<OwnedFd> {
    let licence = c"GPL";
    let mut attributes = [0_u32; 32];
    attributes[0] = kind;
    attributes[1] = u32::try_from(code.len()).unwrap();
    set_pointer(&mut attributes, 2, code.as_ptr().cast());
    set_pointer(&mut attributes, 4, licence.as_ptr().cast());
    // prog_flags, name, ifindex come between.
    attributes[17] = attach_type;
    bpf(PROG_LOAD, &mut attributes)
}

/// The link pinned there.
pub(crate) fn pinned(path: &std::path::Path) -> OwnedFd {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut attributes = [0_u32; 32];
    set_pointer(&mut attributes, 0, path.as_ptr().cast());
    bpf(OBJ_GET, &mut attributes).unwrap()
}

/// Pins a program.
pub(crate) fn pin(program: BorrowedFd<'_>, path: &std::path::Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut attributes = [0_u32; 32];
    set_pointer(&mut attributes, 0, path.as_ptr().cast());
    attributes[2] = program.as_raw_fd().cast_unsigned();
    bpf(OBJ_PIN, &mut attributes).map(drop).unwrap();
}

/// Puts another program into a link.
pub(crate) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) {
    let mut attributes = [0_u32; 32];
    attributes[0] = link.as_raw_fd().cast_unsigned();
    attributes[1] = program.as_raw_fd().cast_unsigned();
    bpf(LINK_UPDATE, &mut attributes).map(drop).unwrap();
}

/// Takes a link's program off.
pub(crate) fn detach(link: BorrowedFd<'_>) {
    let mut attributes = [0_u32; 32];
    attributes[0] = link.as_raw_fd().cast_unsigned();
    bpf(LINK_DETACH, &mut attributes).map(drop).unwrap();
}

/// The program that a link runs.
pub(crate) fn of_link(link: BorrowedFd<'_>) -> OwnedFd {
    let mut info = [0_u32; 32];
    let mut attributes = [0_u32; 32];
    attributes[0] = link.as_raw_fd().cast_unsigned();
    attributes[1] = 128;
    set_pointer(&mut attributes, 2, info.as_mut_ptr().cast());
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes).map(drop).unwrap();
    // SAFETY: in bounds; the kernel has written it behind the compiler's back.
    by_id(unsafe { info.as_ptr().add(2).read_volatile() })
}

/// A loaded program.
pub(crate) fn by_id(id: u32) -> OwnedFd {
    let mut attributes = [0_u32; 32];
    attributes[0] = id;
    bpf(PROG_GET_FD_BY_ID, &mut attributes).unwrap()
}

/// Runs a tc program that many times over a frame of a device of the caller's network
/// namespace; gives its verdict and the mean of its time.
pub(crate) fn run(
    program: BorrowedFd<'_>,
    ifindex: u32,
    frame: &[u8],
    times: u32,
) -> (i32, std::time::Duration) {
    // struct __sk_buff.
    let mut context = [0_u32; 48];
    context[10] = ifindex;
    let mut attributes = [0_u32; 32];
    attributes[0] = program.as_raw_fd().cast_unsigned();
    attributes[2] = u32::try_from(frame.len()).unwrap();
    set_pointer(&mut attributes, 4, frame.as_ptr().cast());
    attributes[8] = times;
    attributes[10] = 48 * 4;
    set_pointer(&mut attributes, 12, context.as_ptr().cast());
    bpf(PROG_TEST_RUN, &mut attributes).map(drop).unwrap();
    let time = std::time::Duration::from_nanos(attributes[9].into());
    (attributes[1].cast_signed(), time)
}

/// Attaches to a device, last.
pub(crate) fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> OwnedFd {
    let mut attributes = [0_u32; 32];
    attributes[0] = program.as_raw_fd().cast_unsigned();
    attributes[1] = ifindex;
    attributes[2] = attach_type;
    bpf(LINK_CREATE, &mut attributes).unwrap()
}

fn set_pointer(attributes: &mut [u32; 32], at: usize, pointer: *const libc::c_void) {
    let address = pointer as u64;
    attributes[at] = (address & 0xffff_ffff) as u32;
    attributes[at + 1] = (address >> 32) as u32;
}

fn bpf(command: i64, attributes: &mut [u32; 32]) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are as long as said, and what they point to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), 128) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    if ![PROG_LOAD, OBJ_GET, LINK_CREATE, PROG_GET_FD_BY_ID].contains(&command) {
        return Ok(std::fs::File::open("/dev/null")?.into());
    }
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) })
}
