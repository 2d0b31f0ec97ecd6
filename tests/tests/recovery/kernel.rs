//! What an agent has pinned in the kernel, read without the agent.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use mesh_lab::{Agent, removal};

const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_GET: libc::c_int = 7;

/// `union bpf_attr` as far as the two commands need it.
#[repr(C)]
#[derive(Default)]
struct Attribute {
    first: u64,
    key: u64,
    next_key: u64,
}

fn bpf(command: libc::c_int, attribute: &mut Attribute) -> io::Result<i32> {
    let size = size_of::<Attribute>();
    // SAFETY: the attribute is writable and as long as said; the addresses in it are of
    // buffers that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many entries a pinned hash map has whose keys are no longer than 8 bytes.
pub(crate) fn entries(agent: &Agent, map: &str) -> usize {
    let pins = format!("{}/nodemesh-{}", removal::BPFFS, agent.instance);
    // One folder, named by the version of the kernel interface.
    let versions: Vec<_> = std::fs::read_dir(&pins).unwrap().flatten().collect();
    let [version] = &versions[..] else {
        panic!("pins of several versions: {versions:?}");
    };
    let pin = format!("{}/maps/{map}", version.path().display());
    let path = CString::new(pin.clone()).unwrap();
    let mut open = Attribute {
        first: path.as_ptr() as u64,
        ..Attribute::default()
    };
    let fd = bpf(BPF_OBJ_GET, &mut open).unwrap_or_else(|e| panic!("{pin}: {e}"));
    // SAFETY: the kernel has just made it for us.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let (mut key, mut next) = ([0u8; 8], [0u8; 8]);
    let mut found = 0;
    loop {
        let mut step = Attribute {
            first: map.as_raw_fd().unsigned_abs().into(),
            key: if found == 0 {
                0
            } else {
                (&raw const key) as u64
            },
            next_key: (&raw mut next) as u64,
        };
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut step) {
            Ok(_) => found += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return found,
            Err(error) => panic!("{pin}: {error}"),
        }
        key = next;
    }
}
