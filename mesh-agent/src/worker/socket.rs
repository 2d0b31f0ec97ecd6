//! Socket options that std and tokio have no names for, and how a worker dials.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use mesh_common::{ClientLabel, SO_CLIENT_LABEL, SO_ORIGINAL_DST, SOL_NODEMESH, mapped_v4};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

/// What the worker asks of the kernel programs, through its own sockets.
pub(crate) trait CaptureHooks {
    /// Where the app that was captured wanted to go. `client` is its address, as `accept` gave it.
    fn original_destination(
        &self,
        accepted: BorrowedFd<'_>,
        client: SocketAddr,
    ) -> io::Result<SocketAddr>;
    /// Where the caller of a connection that was steered here wanted to go.
    fn inbound_destination(&self, accepted: &TcpStream) -> io::Result<SocketAddr>;
    /// Makes the next connect of `socket` a dial of the pod's app for `client`.
    fn label_client(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()>;
}

/// The real hooks: `getsockopt` and `setsockopt`, answered by the eBPF programs.
pub(crate) struct KernelHooks;

impl CaptureHooks for KernelHooks {
    fn original_destination(
        &self,
        accepted: BorrowedFd<'_>,
        client: SocketAddr,
    ) -> io::Result<SocketAddr> {
        // Listeners for IPv6 take nothing else, so the client's family is the socket's.
        let level = if client.is_ipv6() {
            libc::SOL_IPV6
        } else {
            libc::SOL_IP
        };
        let read = |storage: *mut socket2::SockAddrStorage, len: *mut libc::socklen_t| {
            // SAFETY: `storage` and `len` are valid for writes for the whole call, `len` holds
            // the storage's size, and the descriptor is borrowed, so open.
            let rc = unsafe {
                libc::getsockopt(
                    accepted.as_raw_fd(),
                    level,
                    SO_ORIGINAL_DST,
                    storage.cast(),
                    len,
                )
            };
            if rc == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        };
        // SAFETY: the kernel fills a sockaddr_in or sockaddr_in6 and sets the length.
        let ((), address) = unsafe { SockAddr::try_init(read) }?;
        let address = address
            .as_socket()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an internet address"))?;
        Ok(canonical(address))
    }

    /// `sk_lookup` leaves it to be the socket's own address.
    fn inbound_destination(&self, accepted: &TcpStream) -> io::Result<SocketAddr> {
        accepted.local_addr().map(canonical)
    }

    fn label_client(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        let label = ClientLabel {
            address: match client.ip() {
                IpAddr::V4(ip) => mapped_v4(ip.octets()),
                IpAddr::V6(ip) => ip.octets(),
            },
            port: u32::from(client.port()),
        };
        set_option(socket, SOL_NODEMESH, SO_CLIENT_LABEL, &label)
    }
}

fn set_option<T: Copy>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for `len` bytes and the descriptor is open.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            len,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `SO_BUF_LOCK` (Linux 5.14): 0 lets the kernel tune a buffer that was set.
const SO_BUF_LOCK: i32 = 72;

/// Starts a listener's connections with small receive buffers that grow once they are read
/// from: what waits in an accept queue is charged to nobody's cgroup. Where the kernel can't
/// let them grow again, they are left as they are.
pub(crate) fn bound_receive_buffer(listener: &Socket, bytes: usize) -> io::Result<()> {
    let unlock = || set_option(listener.as_fd(), libc::SOL_SOCKET, SO_BUF_LOCK, &0i32);
    match unlock() {
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => return Ok(()),
        Err(e) => return Err(e),
        Ok(()) => {}
    }
    listener.set_recv_buffer_size(bytes)?;
    unlock()
}

/// Bytes that the kernel holds at most of a connection with an app, each way; it counts twice as
/// much, for what it needs around them. Loopback needs no more, while by itself the kernel goes up
/// to 4 MiB sent and 32 received, which nobody reads while the other end is stalled.
const LEG_BUFFER: usize = 256 * 1024;

/// Bounds what the app has sent and the worker has not read.
pub(crate) fn bound_received(app: &TcpStream) {
    // Fails only on a connection that is gone already.
    let _gone = SockRef::from(app).set_recv_buffer_size(LEG_BUFFER);
}

/// Bounds what the worker has sent and the app has not read, beside the app's own buffer.
pub(crate) fn bound_sent(app: &TcpStream) {
    // Fails only on a connection that is gone already.
    let _gone = SockRef::from(app).set_send_buffer_size(LEG_BUFFER);
}

/// IPv4 in IPv4 form.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Loopback address of the family of `ip`.
pub(crate) fn loopback_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Any address of the family of `ip`.
pub(crate) fn unspecified_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// From now on the connection ends with RST however it is closed, be it that the worker dies:
/// an app must never take a cut for the end of its data. Set on a listener, it holds for what
/// the listener accepts, from the start: between `accept` and an option set afterwards a worker
/// can be killed. A dialling socket gets it before it connects, for the same reason.
pub(crate) fn reset_on_close(socket: &impl AsFd) {
    // Fails only on a connection that is gone already.
    let _gone = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Small writes go out at once instead of waiting for each other. Set on a listener, it holds
/// for what the listener accepts, which saves a call for each connection.
pub(crate) fn no_delay(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)
}

/// The connection has come to its end both ways: closing it is orderly again.
pub(crate) fn close_orderly(stream: &TcpStream) {
    // Fails only on a connection that is gone already.
    let _gone = SockRef::from(stream).set_linger(None);
}

/// Closes a connection with RST instead of FIN.
pub(crate) fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}

/// Ends the sending half: FIN after what is written.
pub(crate) fn shutdown_write(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

/// A non-blocking TCP socket for dials from, or to, addresses of that family.
pub(crate) fn new(like: IpAddr) -> io::Result<Socket> {
    Socket::new(
        Domain::for_address(SocketAddr::new(like, 0)),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )
}

/// A non-blocking socket bound to `source` without taking a port, so that ports are only
/// bounded per destination (`IP_BIND_ADDRESS_NO_PORT`, Linux 4.2).
pub(crate) fn dialler(source: IpAddr) -> io::Result<Socket> {
    let socket = new(source)?;
    set_option(
        socket.as_fd(),
        libc::SOL_IP,
        libc::IP_BIND_ADDRESS_NO_PORT,
        &1i32,
    )?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    no_delay(&socket)?;
    Ok(socket)
}

/// Connects within `timeout`.
pub(crate) async fn connect(
    socket: Socket,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    tokio::time::timeout(timeout, socket.connect(to))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// `recv` into uninitialised memory.
pub(crate) fn receive(stream: &TcpStream, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    SockRef::from(stream).recv(into)
}
