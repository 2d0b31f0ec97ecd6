//! One frame through an `AF_XDP` socket in copy mode: neither the IP stack nor a queueing
//! discipline of the pod sees it.

use std::io::{self, Error};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::dodge::device_index;

const CHUNK: u32 = 4096;
/// Bytes of 16 chunks.
const MEMORY: usize = 16 << 12;
/// Entries of each ring.
const RING: u32 = 16;

fn option<T>(socket: &OwnedFd, name: i32, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(Error::other)?;
    let value = ptr::from_ref(value).cast();
    // SAFETY: the value is as long as said.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, name, value, size) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn map(len: usize, flags: i32, fd: i32, offset: i64) -> io::Result<*mut u8> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of the kernel's choice; the result is checked.
    let address = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, fd, offset) };
    match address {
        libc::MAP_FAILED => Err(Error::last_os_error()),
        address => Ok(address.cast()),
    }
}

fn offsets(socket: &OwnedFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: all-zero is a valid value of plain integers.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&offsets)).map_err(Error::other)?;
    let value = (&raw mut offsets).cast();
    let (fd, name) = (socket.as_raw_fd(), libc::XDP_MMAP_OFFSETS);
    // SAFETY: the value and its size live on this stack.
    match unsafe { libc::getsockopt(fd, libc::SOL_XDP, name, value, &raw mut size) } {
        0 => Ok(offsets),
        _ => Err(Error::last_os_error()),
    }
}

/// Sends a frame out of the pod's device, and waits until the device has taken it.
pub(crate) fn send(frame: io::Result<Vec<u8>>) -> io::Result<()> {
    let frame = frame?;
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let memory = map(MEMORY, private, -1, 0)?;
    // SAFETY: the first chunk is longer than any frame of this program.
    unsafe { ptr::copy_nonoverlapping(frame.as_ptr(), memory, frame.len()) };
    // SAFETY: all-zero is a valid value of plain integers.
    let mut region: libc::xdp_umem_reg = unsafe { zeroed() };
    region.addr = memory as u64;
    region.len = MEMORY as u64;
    region.chunk_size = CHUNK;
    option(&socket, libc::XDP_UMEM_REG, &region)?;
    for ring in [
        libc::XDP_UMEM_FILL_RING,
        libc::XDP_UMEM_COMPLETION_RING,
        libc::XDP_TX_RING,
    ] {
        option(&socket, ring, &RING)?;
    }
    let offsets = offsets(&socket)?;
    let shared = libc::MAP_SHARED | libc::MAP_POPULATE;
    let descriptors = usize::try_from(offsets.tx.desc).map_err(Error::other)?;
    let ring_len = descriptors + RING as usize * size_of::<libc::xdp_desc>();
    let ring = map(ring_len, shared, fd, libc::XDP_PGOFF_TX_RING)?;
    // SAFETY: all-zero is a valid sockaddr_xdp.
    let mut address: libc::sockaddr_xdp = unsafe { zeroed() };
    address.sxdp_family = u16::try_from(libc::AF_XDP).map_err(Error::other)?;
    address.sxdp_flags = libc::XDP_COPY;
    address.sxdp_ifindex = device_index()?;
    let size = libc::socklen_t::try_from(size_of_val(&address)).map_err(Error::other)?;
    // SAFETY: the address lives on this stack and has this size.
    if unsafe { libc::bind(fd, (&raw const address).cast(), size) } != 0 {
        return Err(Error::last_os_error());
    }
    let len = u32::try_from(frame.len()).map_err(Error::other)?;
    let producer = usize::try_from(offsets.tx.producer).map_err(Error::other)?;
    let consumer = usize::try_from(offsets.tx.consumer).map_err(Error::other)?;
    // SAFETY: the ring's mapping has its first descriptor there and its producer's counter
    // where the kernel said, aligned; nobody else writes to either.
    unsafe {
        let first = ring.add(descriptors).cast::<libc::xdp_desc>();
        first.write(libc::xdp_desc {
            addr: 0,
            len,
            options: 0,
        });
        let producer = ring.add(producer).cast();
        AtomicU32::from_ptr(producer).store(1, Ordering::Release);
    }
    // SAFETY: nothing but a wake-up: no buffer, no address.
    let sent = unsafe { libc::sendto(fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if sent < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: as above; the consumer's counter is the kernel's.
    let taken = unsafe { AtomicU32::from_ptr(ring.add(consumer).cast()).load(Ordering::Acquire) };
    match taken {
        1 => Ok(()),
        _ => Err(Error::other("the device took no frame")),
    }
}
