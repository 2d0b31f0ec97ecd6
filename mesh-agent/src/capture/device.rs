//! Devices of the caller's network namespace.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The name of a device.
pub(super) fn name(ifindex: u32) -> Option<String> {
    let name = raw_name(ifindex)?;
    let bytes = name.map(libc::c_char::cast_unsigned);
    let name = CStr::from_bytes_until_nul(&bytes).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// Sets a device up or down.
pub(super) fn set_up(ifindex: u32, up: bool) -> io::Result<()> {
    let name = raw_name(ifindex).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the call has filled this field.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let bit = i16::try_from(libc::IFF_UP).expect("a low bit");
    let flags = if up { flags | bit } else { flags & !bit };
    request.ifr_ifru.ifru_flags = flags;
    ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request)
}

fn ioctl(socket: i32, request: libc::Ioctl, argument: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: both requests take a `struct ifreq`, which outlives the call.
    match unsafe { libc::ioctl(socket, request, std::ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn raw_name(ifindex: u32) -> Option<[libc::c_char; libc::IF_NAMESIZE]> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as large as the call demands.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    (!found.is_null()).then_some(name)
}
