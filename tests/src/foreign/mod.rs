//! eBPF programs of somebody else, to stand beside the mesh's own: a socket load balancer, a
//! steering of inbound connections, traffic-control programs. They are written in the kernel's
//! instructions and loaded by bare system calls, so they share nothing with what they test.

mod instructions;
mod programs;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub use programs::{AttachType, Map, Program};

use crate::bpf::{self, Attributes, bpf, bpf_fd};
use crate::netns::Netns;

const OBJ_PIN: libc::c_long = 6;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;

/// Attach before every other program (of a tcx hook).
pub const BEFORE: u32 = 1 << 3;

/// What a program hangs on.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A cgroup's folder or a network namespace.
    Fd(BorrowedFd<'a>),
    /// A device of the caller's network namespace.
    Ifindex(u32),
}

/// An attached program; it is taken off when this is dropped, or some moments later.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl Target<'_> {
    fn number(self) -> u32 {
        match self {
            Self::Fd(fd) => fd.as_raw_fd().cast_unsigned(),
            Self::Ifindex(ifindex) => ifindex,
        }
    }
}

impl Program {
    /// Attaches it, by default after those that are there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attach(&self, target: Target<'_>, kind: AttachType, flags: u32) -> io::Result<Link> {
        let program = self.as_fd().as_raw_fd().cast_unsigned();
        let mut attributes = Attributes::of(&[program, target.number(), kind as u32, flags]);
        let fd = bpf_fd(LINK_CREATE, &mut attributes)?;
        Ok(Link { fd })
    }

    /// Attaches it to a cgroup.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attach_cgroup(&self, cgroup: &Path, kind: AttachType) -> io::Result<Link> {
        let folder = File::open(cgroup)?;
        self.attach(Target::Fd(folder.as_fd()), kind, 0)
    }

    /// Pins it, for programs that take it from there (`tc filter add … bpf object-pinned`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = bpf::path(path)?;
        let mut attributes = Attributes::of(&[0, 0, self.as_fd().as_raw_fd().cast_unsigned()]);
        attributes.set_pointer(0, path.as_ptr().cast());
        bpf(OBJ_PIN, &mut attributes).map(drop)
    }

    /// The number that the kernel knows it by.
    ///
    /// # Errors
    /// The kernel's.
    pub fn id(&self) -> io::Result<u32> {
        bpf::info(self.as_fd(), 1)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What tells a network namespace from all others of this boot.
///
/// # Errors
/// The kernel's.
pub fn netns_cookie(netns: &Netns) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    netns.run(|| {
        let socket = std::net::UdpSocket::bind("[::]:0")?;
        let mut cookie = 0_u64;
        let mut len = libc::socklen_t::try_from(size_of::<u64>()).expect("a small number");
        // SAFETY: the value is as long as said.
        let status = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        match status {
            0 => Ok(cookie),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// The programs attached there, by id, in the order in which they run.
///
/// # Errors
/// The kernel's.
///
/// # Panics
/// If there are more than 128.
pub fn programs_at(target: Target<'_>, kind: AttachType) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 128];
    let mut attributes = Attributes::of(&[target.number(), kind as u32]);
    attributes.set_pointer(4, ids.as_mut_ptr().cast());
    attributes.set(6, 128);
    bpf(PROG_QUERY, &mut attributes)?;
    let count = usize::try_from(attributes.get(6)).expect("a count");
    Ok(bpf::written(&ids)[..count].to_vec())
}
