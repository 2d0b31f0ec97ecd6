//! `AF_XDP`: frames that a pod puts into its device's queue from memory it shares with the kernel.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use mesh_common::KernelReason;

use crate::frame::{self, ACK, IPV4, IPV6, PSH};
use crate::lab::{Lab, NODE_V6, eventually};
use crate::wall::{NODE, POD, TCP};

const CHUNK: usize = 4096;
const RING: u32 = 4;

/// A socket with room for one frame, bound to the first queue of a device.
struct XdpSocket {
    fd: OwnedFd,
    memory: NonNull<u8>,
    ring: NonNull<u8>,
    offsets: libc::xdp_ring_offset,
    sent: u32,
}

impl XdpSocket {
    fn bind(fd: OwnedFd, ifindex: u32) -> Self {
        let memory = map(None, 0, CHUNK);
        let region = libc::xdp_umem_reg {
            addr: memory.as_ptr() as u64,
            len: CHUNK as u64,
            chunk_size: u32::try_from(CHUNK).unwrap(),
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        // Before tx_metadata_len, which old kernels don't know.
        let len = size_of_val(&region) - 8;
        set(&fd, libc::XDP_UMEM_REG, (&raw const region).cast(), len);
        let entries = RING;
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_TX_RING,
        ] {
            set(&fd, ring, (&raw const entries).cast(), 4);
        }
        let offsets = offsets(&fd).tx;
        let bytes =
            usize::try_from(offsets.desc).unwrap() + RING as usize * size_of::<libc::xdp_desc>();
        let ring = map(Some(&fd), libc::XDP_PGOFF_TX_RING, bytes);
        let address = libc::sockaddr_xdp {
            sxdp_family: u16::try_from(libc::AF_XDP).unwrap(),
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        };
        // SAFETY: the address is as long as said.
        let status = unsafe {
            let len = socklen(size_of_val(&address));
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len)
        };
        assert_eq!(status, 0, "bind: {}", io::Error::last_os_error());
        Self {
            fd,
            memory,
            ring,
            offsets,
            sent: 0,
        }
    }

    fn send(&mut self, frame: &[u8]) {
        assert!(frame.len() <= CHUNK);
        let index = self.sent % RING;
        self.sent += 1;
        let descriptor = libc::xdp_desc {
            addr: 0,
            len: u32::try_from(frame.len()).unwrap(),
            options: 0,
        };
        let at = |offset: u64| usize::try_from(offset).unwrap();
        // SAFETY: memory and ring are mapped as large as these offsets demand; the kernel reads
        // them when the producer's index says so, which is written last.
        unsafe {
            let target = self.memory.as_ptr();
            std::ptr::copy_nonoverlapping(frame.as_ptr(), target, frame.len());
            let descriptors = self
                .ring
                .add(at(self.offsets.desc))
                .cast::<libc::xdp_desc>();
            descriptors.add(index as usize).write_volatile(descriptor);
            std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
            let producer = self.ring.add(at(self.offsets.producer)).cast::<u32>();
            producer.write_volatile(self.sent);
        }
        // SAFETY: an empty message.
        let status = unsafe {
            let (fd, flags) = (self.fd.as_raw_fd(), libc::MSG_DONTWAIT);
            libc::sendto(fd, std::ptr::null(), 0, flags, std::ptr::null(), 0)
        };
        assert_eq!(status, 0, "sendto: {}", io::Error::last_os_error());
    }
}

fn socklen(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).unwrap()
}

fn set(fd: &OwnedFd, option: i32, value: *const libc::c_void, len: usize) {
    let len = socklen(len);
    // SAFETY: the value is as long as said.
    let status = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, value, len) };
    assert_eq!(status, 0, "option {option}: {}", io::Error::last_os_error());
}

fn offsets(fd: &OwnedFd) -> libc::xdp_mmap_offsets {
    // SAFETY: all zeros is a value of this type, and the kernel writes no more than its size.
    unsafe {
        let mut offsets: libc::xdp_mmap_offsets = std::mem::zeroed();
        let mut len = socklen(size_of_val(&offsets));
        let (fd, value) = (fd.as_raw_fd(), (&raw mut offsets).cast());
        let status = libc::getsockopt(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, value, &mut len);
        assert_eq!(status, 0, "{}", io::Error::last_os_error());
        offsets
    }
}

/// Shared memory of the socket, or memory of our own; it stays mapped to the end of the test.
fn map(fd: Option<&OwnedFd>, offset: libc::off_t, bytes: usize) -> NonNull<u8> {
    let (flags, fd) = match fd {
        Some(fd) => (libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: a new mapping, which touches nothing that is there.
    let start = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), bytes, access, flags, fd, offset)
    };
    assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    NonNull::new(start.cast()).unwrap()
}

#[test]
fn frames_by_af_xdp_meet_the_wall() {
    let lab = Lab::new();
    let app = lab.app();
    let ifindex = lab.in_pod(|| nix::net::if_::if_nametoindex("eth0").unwrap());
    let mut socket = XdpSocket::bind(app.socket(libc::AF_XDP, libc::SOCK_RAW, 0), ifindex);
    let segment = frame::tcp(80, PSH | ACK, &[], b"in clear");
    let (pod, node) = ("fd88::2".parse().unwrap(), NODE_V6.parse().unwrap());
    let frames = [
        frame::ethernet(IPV4, &frame::ipv4(POD, NODE, TCP, 0, &segment)),
        frame::ethernet(IPV6, &frame::ipv6(pod, node, TCP, &segment)),
    ];
    for (frame, count) in frames.iter().zip(1..) {
        socket.send(frame);
        eventually("the wall counts it", || {
            (lab.refused(0, KernelReason::WallNotWorker) == count).then_some(())
        });
    }
}
