//! What sockets say of themselves.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mesh_common::SO_ORIGINAL_DST;
use socket2::{SockAddr, Socket};

/// `SO_ORIGINAL_DST` of a worker's accepted socket.
pub(crate) fn original_destination(socket: &Socket, level: i32) -> SocketAddr {
    // SAFETY: the call fills the storage and says how much.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let fd = socket.as_raw_fd();
            match libc::getsockopt(fd, level, SO_ORIGINAL_DST, storage.cast(), len) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
    .unwrap();
    address.as_socket().unwrap()
}

/// Accepts, with what `accept` says of the peer; panics when nobody comes.
pub(crate) fn accept(listener: &Socket) -> (Socket, SocketAddr) {
    let timeout = Some(Duration::from_secs(5));
    listener.set_read_timeout(timeout).unwrap();
    let (socket, peer) = listener.accept().unwrap();
    socket.set_read_timeout(timeout).unwrap();
    (socket, peer.as_socket().unwrap())
}

pub(crate) fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

pub(crate) fn local(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
