//! The programs themselves.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::instructions::{Code, Helper, R};
use crate::bpf::{Attributes, bpf, bpf_fd};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;

const MAP_TYPE_SOCKMAP: u32 = 15;
const SCHED_CLS: u32 = 3;
const CGROUP_SOCK_ADDR: u32 = 18;
const SK_LOOKUP: u32 = 30;

/// `enum bpf_attach_type` of `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachType {
    /// `connect` of IPv4 sockets in a cgroup.
    Connect4 = 10,
    /// `connect` of IPv6 sockets in a cgroup.
    Connect6 = 11,
    /// `getpeername` of IPv4 sockets in a cgroup.
    Getpeername4 = 29,
    /// `getpeername` of IPv6 sockets in a cgroup.
    Getpeername6 = 30,
    /// Look-up of a listener in a network namespace.
    SkLookup = 36,
    /// What comes in at a device.
    TcxIngress = 46,
    /// What goes out at a device.
    TcxEgress = 47,
}

/// A loaded program.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// A map of one socket.
#[derive(Debug)]
pub struct Map(OwnedFd);

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Map {
    /// A map with this socket in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut attributes = Attributes::of(&[MAP_TYPE_SOCKMAP, 4, 8, 1]);
        let map = bpf_fd(MAP_CREATE, &mut attributes)?;
        let key = 0_u32;
        let value = u64::from(socket.as_raw_fd().cast_unsigned());
        let mut attributes = Attributes::of(&[map.as_raw_fd().cast_unsigned()]);
        attributes.set_pointer(2, (&raw const key).cast());
        attributes.set_pointer(4, (&raw const value).cast());
        bpf(MAP_UPDATE_ELEM, &mut attributes)?;
        Ok(Self(map))
    }
}

impl Program {
    /// What a socket load balancer does at `connect` and undoes at `getpeername`: whoever names
    /// the one address is given the other. Both are of one family. Only in the network namespace
    /// with this cookie: a cgroup's programs run for everybody in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn translate(
        kind: AttachType,
        netns_cookie: u64,
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<Self> {
        // The cookies of one boot are small numbers.
        let cookie = i32::try_from(netns_cookie).map_err(io::Error::other)?;
        let mut code = Code::default()
            .copy(R::R6, R::R1)
            .call(Helper::NetnsCookie)
            .end_unless(R::R0, cookie);
        for (offset, word) in words(from) {
            code = code.load(R::R2, R::R6, offset).end_unless(R::R2, word);
        }
        for (offset, word) in words(to) {
            code = code.set(R::R2, word).store(R::R6, offset, R::R2);
        }
        Self::load(CGROUP_SOCK_ADDR, kind as u32, &code.finish(1))
    }

    /// An `sk_lookup` program that gives what comes to a local port to the map's socket. With
    /// `replace` also what another program has given to its own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn steer(local_port: u16, map: &Map, replace: bool) -> io::Result<Self> {
        const LOCAL_PORT: i16 = 60;
        let code = Code::default()
            .copy(R::R6, R::R1)
            .load(R::R2, R::R6, LOCAL_PORT)
            .end_unless(R::R2, local_port.into())
            .set(R::R2, 0)
            .store(R::R10, -4, R::R2)
            .copy(R::R2, R::R10)
            .add(R::R2, -4)
            .map(R::R1, map.0.as_raw_fd())
            .call(Helper::MapLookup)
            .end_if_null(R::R0)
            .copy(R::R7, R::R0)
            .copy(R::R1, R::R6)
            .copy(R::R2, R::R7)
            .set(R::R3, i32::from(replace))
            .call(Helper::SkAssign)
            .copy(R::R1, R::R7)
            .call(Helper::SkRelease);
        Self::load(SK_LOOKUP, AttachType::SkLookup as u32, &code.finish(1))
    }

    /// A tc program that returns this verdict on everything (`TC_ACT_*`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn verdict(verdict: i32) -> io::Result<Self> {
        Self::load(SCHED_CLS, 0, &Code::default().finish(verdict))
    }

    /// A tc program that sends everything out of another device.
    ///
    /// # Errors
    /// The kernel's.
    pub fn redirect(ifindex: u32) -> io::Result<Self> {
        let code = Code::default()
            .set(R::R1, ifindex.cast_signed())
            .set(R::R2, 0)
            .call(Helper::Redirect);
        Self::load(SCHED_CLS, 0, &code.exit())
    }

    fn load(kind: u32, attach_type: u32, code: &[u64]) -> io::Result<Self> {
        let licence = c"GPL";
        let count = u32::try_from(code.len()).expect("short code");
        let mut attributes = Attributes::of(&[kind, count]);
        attributes.set_pointer(2, code.as_ptr().cast());
        attributes.set_pointer(4, licence.as_ptr().cast());
        // Log, kernel version, flags, name and ifindex come between.
        attributes.set(17, attach_type);
        bpf_fd(PROG_LOAD, &mut attributes).map(Self)
    }
}

/// An address as the words of `struct bpf_sock_addr`, which are in network byte order.
fn words(address: SocketAddr) -> Vec<(i16, i32)> {
    const USER_IP4: i16 = 4;
    const USER_IP6: i16 = 8;
    const USER_PORT: i16 = 24;
    let mut words = match address.ip() {
        IpAddr::V4(v4) => vec![(USER_IP4, i32::from_ne_bytes(v4.octets()))],
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let (chunks, _) = octets.as_chunks::<4>();
            let word = chunks.iter().map(|chunk| i32::from_ne_bytes(*chunk));
            (USER_IP6..).step_by(4).zip(word).collect()
        }
    };
    words.push((USER_PORT, i32::from(address.port().to_be())));
    words
}
