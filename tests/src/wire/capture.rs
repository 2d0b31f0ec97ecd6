//! Capture of whole frames by a packet socket.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::streams::Streams;
use crate::netns::Netns;

/// Bytes of frames that may wait in the socket.
static SOCKET_BUFFER: libc::c_int = 64 << 20;
/// GRO and GSO make frames of up to 64 KiB.
const MAX_FRAME: usize = 256 << 10;

/// A running capture of one port of the fabric: it sees each frame that passes once.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Recording>>,
}

/// What a capture saw.
#[derive(Debug, Default)]
pub struct Recording {
    /// Frames, from the Ethernet header on, with the time since the capture's start.
    pub frames: Vec<(Duration, Vec<u8>)>,
}

impl Capture {
    pub(crate) fn start(netns: &Netns, link: &str) -> Result<Self> {
        let socket = netns
            .run(|| packet_socket(link))
            .with_context(|| format!("capturing on {link} in {}", netns.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || record(&socket, &stopped));
        Ok(Self { stop, thread })
    }

    /// Ends it: all frames that passed before this call are in the recording.
    ///
    /// # Errors
    /// If the kernel had to drop frames, or the socket failed.
    pub fn stop(self) -> Result<Recording> {
        self.stop.store(true, Ordering::Release);
        self.thread
            .join()
            .map_err(|_| anyhow!("the capture's thread panicked"))?
    }
}

impl Recording {
    /// The TCP streams in it.
    #[must_use]
    pub fn streams(&self) -> Streams {
        Streams::new(self.frames.iter().map(|(_, frame)| frame.as_slice()))
    }

    /// Whether these bytes are anywhere: in a frame, or across segments in a TCP stream.
    #[must_use]
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.frames
            .iter()
            .any(|(_, f)| super::streams::has(f, needle))
            || self.streams().contain(needle)
    }
}

fn packet_socket(link: &str) -> Result<OwnedFd> {
    let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
    // SAFETY: no pointers; the result is checked below.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            i32::from(all),
        )
    };
    ensure!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>())?;
    // SAFETY: the option's value is an int of this size on this stack.
    let buffered = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const SOCKET_BUFFER).cast(),
            size,
        )
    };
    ensure!(buffered == 0, "buffer: {}", io::Error::last_os_error());
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = all;
    address.sll_ifindex = i32::try_from(nix::net::if_::if_nametoindex(link)?)?;
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: the address lives on this stack and has this size.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), size) };
    ensure!(bound == 0, "bind: {}", io::Error::last_os_error());
    Ok(socket)
}

fn record(socket: &OwnedFd, stop: &AtomicBool) -> Result<Recording> {
    let started = Instant::now();
    let mut recording = Recording::default();
    let mut frame = vec![0; MAX_FRAME];
    loop {
        // Read before the socket is drained: what passed before `stop` is in it by then.
        let last = stop.load(Ordering::Acquire);
        while let Some(len) = receive(socket, &mut frame)? {
            recording
                .frames
                .push((started.elapsed(), frame[..len].to_vec()));
        }
        if last {
            break;
        }
        let mut ready = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, on this stack.
        unsafe { libc::poll(&raw mut ready, 1, 20) };
    }
    ensure!(
        drops(socket)? == 0,
        "the capture lost frames: its buffer was too small for this traffic"
    );
    Ok(recording)
}

fn receive(socket: &OwnedFd, frame: &mut [u8]) -> Result<Option<usize>> {
    // SAFETY: the buffer is writable for its whole length.
    let len = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            frame.as_mut_ptr().cast(),
            frame.len(),
            libc::MSG_TRUNC,
        )
    };
    if len < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(None),
            _ => Err(error).context("reading from the packet socket"),
        };
    }
    let len = usize::try_from(len)?;
    ensure!(len <= frame.len(), "a frame of {len} bytes");
    Ok(Some(len))
}

fn drops(socket: &OwnedFd) -> Result<u32> {
    // SAFETY: all-zero is a valid tpacket_stats.
    let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>())?;
    // SAFETY: the value and its size live on this stack.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut size,
        )
    };
    ensure!(got == 0, "statistics: {}", io::Error::last_os_error());
    Ok(stats.tp_drops)
}
