//! A network namespace's cookie: what the enrolment map is keyed by.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::{io, thread};

use nix::sched::{CloneFlags, setns};

use super::error::{CaptureError, Result};

/// The cookie of a network namespace (`SO_NETNS_COOKIE`, since Linux 5.14). Enters it on a
/// thread of its own that ends with the call.
///
/// # Errors
/// If the namespace can't be entered, or the kernel doesn't know the option.
pub fn netns_cookie(netns: BorrowedFd<'_>) -> Result<u64> {
    thread::scope(|scope| scope.spawn(|| cookie_inside(netns)).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that entered it panicked")))
        .map_err(|source| CaptureError::Io {
            action: "reading the cookie of the network namespace",
            path: format!("/proc/self/fd/{}", netns.as_raw_fd()).into(),
            source,
        })
}

fn cookie_inside(netns: BorrowedFd<'_>) -> io::Result<u64> {
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket_netns_cookie(socket.as_fd())
}

/// Cookie of the network namespace that a socket belongs to, wherever the caller is.
///
/// # Errors
/// Whatever `getsockopt(SO_NETNS_COOKIE)` gives, for what is no socket for example.
pub fn socket_netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: `cookie` and `len` outlive the call, and `len` says how large `cookie` is.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}
