//! What an app dials arrives at its worker, with the original destination.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mesh_common::SO_ORIGINAL_DST;
use socket2::Socket;

use crate::lab::Lab;

/// Nobody's address outside.
const V4: &str = "198.51.100.7:443";
const V6: &str = "[2001:db8::7]:443";

fn original_destination(socket: &Socket, level: i32) -> SocketAddr {
    // SAFETY: the closure fills the storage through the call.
    let ((), address) = unsafe {
        socket2::SockAddr::try_init(|storage, len| {
            let status = libc::getsockopt(
                socket.as_raw_fd(),
                level,
                SO_ORIGINAL_DST,
                storage.cast(),
                len,
            );
            if status == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        })
    }
    .unwrap();
    address.as_socket().unwrap()
}

fn accept(listener: &Socket) -> Socket {
    listener
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    listener.accept().unwrap().0
}

#[test]
fn ipv4_arrives_with_its_original_destination_and_names() {
    let lab = Lab::new();
    let app = lab.in_pod(|| TcpStream::connect(V4).unwrap());
    let worker = accept(&lab.worker().outbound_v4);
    assert_eq!(
        original_destination(&worker, libc::SOL_IP),
        V4.parse().unwrap()
    );
    assert_eq!(app.peer_addr().unwrap(), V4.parse().unwrap());
    let local = app.local_addr().unwrap();
    assert_eq!(local.ip(), lab.pod().v4);
    let seen = worker.peer_addr().unwrap().as_socket().unwrap();
    assert_eq!(seen.port(), local.port());
    let capture = lab.capture.as_ref().unwrap();
    assert_eq!(capture.unfinished(0).unwrap(), (0, 0));
}
