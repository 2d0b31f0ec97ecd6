//! bpf(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// `union bpf_attr`, as words.
#[repr(C, align(8))]
pub(crate) struct Attributes([u32; 32]);

impl Attributes {
    pub(crate) fn of(head: &[u32]) -> Self {
        let mut words = [0; 32];
        words[..head.len()].copy_from_slice(head);
        Self(words)
    }

    pub(crate) fn set(&mut self, at: usize, value: u32) {
        self.0[at] = value;
    }

    /// What the kernel has written there.
    pub(crate) fn get(&self, at: usize) -> u32 {
        written(&self.0[at])
    }

    pub(crate) fn set_pointer(&mut self, at: usize, pointer: *const libc::c_void) {
        let bytes = (pointer as u64).to_ne_bytes();
        let [a, b, c, d, e, f, g, h] = bytes;
        self.0[at] = u32::from_ne_bytes([a, b, c, d]);
        self.0[at + 1] = u32::from_ne_bytes([e, f, g, h]);
    }
}

pub(crate) fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<i32> {
    let size = size_of::<Attributes>();
    // SAFETY: the attributes are as large as said, and what they point to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A command that makes a descriptor.
pub(crate) fn bpf_fd(command: libc::c_long, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// What the kernel has written there behind the compiler's back.
pub(crate) fn written<T: Copy>(place: &T) -> T {
    // SAFETY: a reference is readable.
    unsafe { std::ptr::from_ref(place).read_volatile() }
}

/// One word of what the kernel tells of a program or a map.
pub(crate) fn info(fd: BorrowedFd<'_>, word: usize) -> io::Result<u32> {
    let mut info = [0_u32; 32];
    let mut attributes = Attributes::of(&[fd.as_raw_fd().cast_unsigned(), 128]);
    attributes.set_pointer(2, info.as_mut_ptr().cast());
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(written(&info)[word])
}

const MAP_GET_NEXT_ID: libc::c_long = 12;
const MAP_GET_FD_BY_ID: libc::c_long = 14;

/// Bytes of all eBPF maps on this machine, as the kernel reckons them.
///
/// # Errors
/// If this process may not ask.
pub fn map_bytes() -> io::Result<u64> {
    let (mut total, mut id) = (0, 0);
    loop {
        let mut attributes = Attributes::of(&[id]);
        match bpf(MAP_GET_NEXT_ID, &mut attributes) {
            Ok(_) => id = attributes.get(1),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(total),
            Err(error) => return Err(error),
        }
        // A map may go between the two calls.
        let Ok(map) = bpf_fd(MAP_GET_FD_BY_ID, &mut Attributes::of(&[id])) else {
            continue;
        };
        let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
        let bytes = told.lines().find_map(|line| line.strip_prefix("memlock:"));
        total += bytes
            .and_then(|bytes| bytes.trim().parse().ok())
            .unwrap_or(0);
    }
}
