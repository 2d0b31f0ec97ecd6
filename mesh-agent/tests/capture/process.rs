//! A process in a cgroup and network namespace of choice that makes, binds and connects
//! sockets for the test: what the programs trust is who does these.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use mesh_common::{ClientLabel, SO_CLIENT_LABEL, SOL_NODEMESH};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

const SOCKET: u8 = 1;
const BIND: u8 = 2;
const CONNECT: u8 = 3;
const ACCEPT: u8 = 4;
/// Request: operation, three integers, and an address.
const REQUEST_BYTES: usize = 1 + 3 * 4 + size_of::<SockAddrStorage>();

/// The child; killed when dropped.
pub(crate) struct Process {
    pid: Pid,
    channel: OwnedFd,
}

impl Process {
    /// A child in that network namespace and cgroup.
    pub(crate) fn spawn(netns: &Path, cgroup: &Path) -> Self {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let netns = std::fs::File::open(netns).unwrap();
        let procs = cgroup.join("cgroup.procs");
        // SAFETY: the child only makes system calls and short-lived allocations (glibc keeps its
        // allocator usable in a forked child), and ends by _exit.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                let process = Self {
                    pid: child,
                    channel: ours,
                };
                drop(theirs);
                process
            }
            ForkResult::Child => {
                close_others([theirs.as_raw_fd(), netns.as_raw_fd()]);
                let ready = std::fs::write(&procs, std::process::id().to_string()).is_ok()
                    && nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).is_ok()
                    && nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).is_ok();
                if ready {
                    while serve(theirs.as_fd()).is_some() {}
                }
                // SAFETY: ends the child without running the test harness's exit code.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// A socket made in the child, so of its cgroup and namespace.
    pub(crate) fn socket(&self, domain: i32, kind: i32, protocol: i32) -> OwnedFd {
        let (status, fd) = self.call(SOCKET, [domain, kind, protocol], None, None);
        assert_eq!(
            status,
            0,
            "socket: {}",
            io::Error::from_raw_os_error(status)
        );
        fd.unwrap()
    }

    /// A TCP socket made in the child.
    pub(crate) fn tcp(&self, address: SocketAddr) -> Socket {
        let domain = Domain::for_address(address);
        let protocol = Protocol::TCP.into();
        Socket::from(self.socket(domain.into(), Type::STREAM.into(), protocol))
    }

    pub(crate) fn bind(&self, socket: &Socket, address: SocketAddr) -> io::Result<()> {
        self.on_socket(BIND, socket, address)
    }

    pub(crate) fn connect(&self, socket: &Socket, address: SocketAddr) -> io::Result<()> {
        self.on_socket(CONNECT, socket, address)
    }

    /// A listening socket.
    pub(crate) fn listen(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = self.tcp(address);
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        self.bind(&socket, address)?;
        socket.listen(128)?;
        Ok(socket)
    }

    /// A connected socket.
    pub(crate) fn dial(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = self.tcp(address);
        self.connect(&socket, address)?;
        Ok(socket)
    }

    /// A dial of the pod's app on behalf of a client, from the loopback address, as a worker does.
    pub(crate) fn dial_app(&self, app: SocketAddr, client: SocketAddr) -> io::Result<Socket> {
        let socket = self.tcp(app);
        label(&socket, client)?;
        let loopback = if app.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        if app.is_ipv4() {
            take_no_port_by_bind(&socket)?;
            self.bind(&socket, loopback.parse().unwrap())?;
        }
        self.connect(&socket, app)?;
        Ok(socket)
    }

    /// Accepts what waits in a listener's queue.
    pub(crate) fn accept(&self, listener: &Socket) -> Socket {
        let (status, fd) = self.call(ACCEPT, [0; 3], None, Some(listener.as_fd()));
        assert_eq!(status, 0, "{}", io::Error::from_raw_os_error(status));
        fd.unwrap().into()
    }

    fn on_socket(&self, operation: u8, socket: &Socket, address: SocketAddr) -> io::Result<()> {
        let (status, _) = self.call(operation, [0; 3], Some(address), Some(socket.as_fd()));
        if status == 0 {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(status))
    }

    fn call(
        &self,
        operation: u8,
        numbers: [i32; 3],
        address: Option<SocketAddr>,
        socket: Option<BorrowedFd<'_>>,
    ) -> (i32, Option<OwnedFd>) {
        let mut request = vec![operation];
        request.extend(numbers.iter().flat_map(|n| n.to_ne_bytes()));
        if let Some(address) = address {
            let address = SockAddr::from(address);
            // SAFETY: `as_ptr` is good for `len` bytes.
            request.extend(unsafe {
                std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), address.len() as usize)
            });
        }
        send(self.channel.as_fd(), &request, socket);
        let (reply, fd) = receive(self.channel.as_fd()).expect("the child died");
        (i32::from_ne_bytes(reply[..4].try_into().unwrap()), fd)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Labels a worker's socket with the client that it dials for.
pub(crate) fn label(socket: &Socket, client: SocketAddr) -> io::Result<()> {
    let address = match client {
        SocketAddr::V4(v4) => mesh_common::mapped_v4(v4.ip().octets()),
        SocketAddr::V6(v6) => v6.ip().octets(),
    };
    let label = ClientLabel {
        address,
        port: client.port().into(),
    };
    // SAFETY: the value is as long as said.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            SOL_NODEMESH,
            SO_CLIENT_LABEL,
            (&raw const label).cast(),
            u32::try_from(size_of::<ClientLabel>()).unwrap(),
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A bind to an address leaves the port to `connect`, so that ports are bounded per destination.
fn take_no_port_by_bind(socket: &Socket) -> io::Result<()> {
    let on = 1_i32;
    // SAFETY: the value is as long as said.
    let status = unsafe {
        let (fd, option) = (socket.as_raw_fd(), libc::IP_BIND_ADDRESS_NO_PORT);
        libc::setsockopt(fd, libc::SOL_IP, option, (&raw const on).cast(), 4)
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Other tests' sockets must not live on in this child.
fn close_others(mut keep: [RawFd; 2]) {
    keep.sort_unstable();
    let [low, high] = keep.map(i32::cast_unsigned);
    for (first, last) in [(3, low - 1), (low + 1, high - 1), (high + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: the child uses none of these.
            unsafe { libc::close_range(first, last, 0) };
        }
    }
}

fn serve(channel: BorrowedFd<'_>) -> Option<()> {
    let (request, fd) = receive(channel)?;
    let number = |i: usize| i32::from_ne_bytes(request[1 + 4 * i..5 + 4 * i].try_into().unwrap());
    let address = &request[13..];
    let (address_ptr, len) = (
        address.as_ptr().cast(),
        u32::try_from(address.len()).unwrap(),
    );
    let raw = fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: plain system calls; the address is as long as said.
    let result = unsafe {
        match request[0] {
            SOCKET => libc::socket(number(0), number(1), number(2)),
            BIND => libc::bind(raw, address_ptr, len),
            ACCEPT => libc::accept(raw, std::ptr::null_mut(), std::ptr::null_mut()),
            _ => libc::connect(raw, address_ptr, len),
        }
    };
    let status = if result < 0 {
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    } else {
        0
    };
    let makes = [SOCKET, ACCEPT].contains(&request[0]) && result >= 0;
    // SAFETY: the socket was just made.
    let made = makes.then(|| unsafe { OwnedFd::from_raw_fd(result) });
    send(
        channel,
        &status.to_ne_bytes(),
        made.as_ref().map(AsFd::as_fd),
    );
    Some(())
}

fn send(channel: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) {
    let raw: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let data = [IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(channel.as_raw_fd(), &data, control, MsgFlags::empty(), None).unwrap();
}

fn receive(channel: BorrowedFd<'_>) -> Option<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; REQUEST_BYTES];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut data = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received =
        recvmsg::<UnixAddr>(channel.as_raw_fd(), &mut data, Some(&mut space), flags).ok()?;
    let mut fd = None;
    for control in received.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made the descriptor.
            fd = raw.first().map(|&raw| unsafe { OwnedFd::from_raw_fd(raw) });
        }
    }
    let len = received.bytes;
    if len == 0 {
        return None;
    }
    bytes.truncate(len);
    Some((bytes, fd))
}
