//! Dumps of links, addresses and routes of the calling thread's network namespace.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::events::word;
use crate::netlink::{self, List, attributes, half, malformed, text};

/// Most entries of a dump that are read: a pod can have as many addresses and routes as it likes.
pub(super) const DUMP_LIMIT: usize = 1_024;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// `None` for what has no kind: physical devices, and the loopback.
    pub(super) kind: Option<String>,
    pub(super) loopback: bool,
    /// The device it stands on or, for a veth, its peer.
    pub(super) peer: Option<u32>,
    /// Set when `peer` is of another network namespace.
    pub(super) peer_elsewhere: bool,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The device.
    pub(super) index: u32,
    pub(super) address: IpAddr,
}

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    /// `None` for a default route.
    pub(super) destination: Option<IpAddr>,
    pub(super) prefix_len: u8,
    pub(super) v6: bool,
    pub(super) oif: Option<u32>,
    pub(super) table: u32,
    /// The kernel made it, for an address.
    pub(super) by_kernel: bool,
}

impl Link {
    /// For people; the name was chosen by the pod.
    pub(super) fn describe(&self) -> String {
        let kind = word(self.kind.as_deref().unwrap_or("without a kind"));
        format!("{} ({kind})", word(&self.name))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination {
            Some(destination) => write!(f, "{destination}/{}", self.prefix_len)?,
            None => f.write_str(if self.v6 { "default (IPv6)" } else { "default" })?,
        }
        match self.oif {
            Some(oif) => write!(f, " by device {oif}, table {}", self.table),
            None => write!(f, ", table {}", self.table),
        }
    }
}

/// `struct ifinfomsg`, `struct ifaddrmsg` and `struct rtmsg`.
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const ROUTE_BYTES: usize = 12;

pub(super) const LINKS: List = List {
    protocol: NETLINK_ROUTE,
    ask: libc::RTM_GETLINK,
    entry: libc::RTM_NEWLINK,
    limit: DUMP_LIMIT,
};
pub(super) const ADDRESSES: List = List {
    protocol: NETLINK_ROUTE,
    ask: libc::RTM_GETADDR,
    entry: libc::RTM_NEWADDR,
    limit: DUMP_LIMIT,
};
pub(super) const ROUTES: List = List {
    protocol: NETLINK_ROUTE,
    ask: libc::RTM_GETROUTE,
    entry: libc::RTM_NEWROUTE,
    limit: DUMP_LIMIT,
};

/// Every device, or the first `limit`.
pub(super) fn links(limit: usize) -> io::Result<Vec<Link>> {
    List { limit, ..LINKS }.dump(&[0; LINK_BYTES], read_link)
}

pub(super) fn read_link(entry: &[u8]) -> io::Result<Link> {
    let mut link = Link {
        index: netlink::word(entry, 4)?,
        name: String::new(),
        kind: None,
        loopback: half(entry, 2)? == libc::ARPHRD_LOOPBACK,
        peer: None,
        peer_elsewhere: false,
    };
    for attribute in attributes(after(entry, LINK_BYTES)?) {
        let (kind, value) = attribute?;
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_LINK => link.peer = Some(netlink::word(value, 0)?),
            libc::IFLA_LINK_NETNSID => link.peer_elsewhere = true,
            libc::IFLA_LINKINFO => link.kind = read_kind(value)?,
            _ => {}
        }
    }
    Ok(link)
}

fn read_kind(infos: &[u8]) -> io::Result<Option<String>> {
    for info in attributes(infos) {
        if let (libc::IFLA_INFO_KIND, kind) = info? {
            return Ok(Some(text(kind)));
        }
    }
    Ok(None)
}

/// Addresses of every device, link-local ones included; the first [`DUMP_LIMIT`].
pub(super) fn addresses() -> io::Result<Vec<Address>> {
    let found = ADDRESSES.dump(&[0; ADDRESS_BYTES], read_address)?;
    Ok(found.into_iter().flatten().collect())
}

/// `None` for an address of another family than IP.
pub(super) fn read_address(entry: &[u8]) -> io::Result<Option<Address>> {
    let (family, index) = (byte(entry, 0)?, netlink::word(entry, 4)?);
    let (mut local, mut other) = (None, None);
    for attribute in attributes(after(entry, ADDRESS_BYTES)?) {
        let (kind, value) = attribute?;
        match kind {
            libc::IFA_LOCAL => local = ip(family, value)?,
            libc::IFA_ADDRESS => other = ip(family, value)?,
            _ => {}
        }
    }
    // On a point-to-point device ADDRESS is the peer's.
    let address = local.or(other);
    Ok(address.map(|address| Address { index, address }))
}

/// Unicast routes of every table; the first [`DUMP_LIMIT`] of each family, of whatever kind.
pub(super) fn routes() -> io::Result<Vec<Route>> {
    let mut found = Vec::new();
    for family in [INET, INET6] {
        let mut request = [0; ROUTE_BYTES];
        request[0] = family;
        found.extend(ROUTES.dump(&request, read_route)?);
    }
    Ok(found.into_iter().flatten().collect())
}

/// `None` for a route of another kind.
pub(super) fn read_route(entry: &[u8]) -> io::Result<Option<Route>> {
    let family = byte(entry, 0)?;
    let mut route = Route {
        destination: None,
        prefix_len: byte(entry, 1)?,
        v6: family == INET6,
        oif: None,
        table: byte(entry, 4)?.into(),
        by_kernel: byte(entry, 5)? == libc::RTPROT_KERNEL,
    };
    if byte(entry, 7)? != libc::RTN_UNICAST {
        return Ok(None);
    }
    for attribute in attributes(after(entry, ROUTE_BYTES)?) {
        let (kind, value) = attribute?;
        match kind {
            libc::RTA_DST => route.destination = ip(family, value)?,
            libc::RTA_OIF => route.oif = Some(netlink::word(value, 0)?),
            libc::RTA_TABLE => route.table = netlink::word(value, 0)?,
            _ => {}
        }
    }
    Ok(Some(route))
}

const INET: u8 = 2;
const INET6: u8 = 10;

/// `None` for another family.
fn ip(family: u8, value: &[u8]) -> io::Result<Option<IpAddr>> {
    let read = match family {
        INET => <[u8; 4]>::try_from(value).map(IpAddr::from),
        INET6 => <[u8; 16]>::try_from(value).map(IpAddr::from),
        _ => return Ok(None),
    };
    read.map(Some).map_err(|_| malformed())
}

fn byte(entry: &[u8], at: usize) -> io::Result<u8> {
    entry.get(at).copied().ok_or_else(malformed)
}

/// What follows the fixed part of an entry.
fn after(entry: &[u8], fixed: usize) -> io::Result<&[u8]> {
    entry.get(fixed..).ok_or_else(malformed)
}

/// What a subscription hears of: devices, and addresses and routes of both families
/// (`RTNLGRP_*` of `linux/rtnetlink.h`).
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
/// Room for what happened since the last look; more is told by an overflow.
const SUBSCRIPTION_BYTES: usize = 16 * 1024;

/// A socket that becomes readable when the devices, addresses or routes of the calling thread's
/// namespace change. What it says is not to be read: it was worded by whoever changed them.
pub(super) fn subscribe() -> io::Result<OwnedFd> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_rx_buf_sz(SUBSCRIPTION_BYTES)?;
    socket.set_non_blocking(true)?;
    socket.bind_auto()?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    socket.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(attributes: &[Vec<u8>]) -> io::Result<Link> {
        let mut entry = vec![0; LINK_BYTES];
        entry[4] = 7;
        entry.extend(attributes.concat());
        read_link(&entry)
    }

    #[test]
    fn a_device_is_read_whatever_its_name_and_what_else_is_said_of_it() {
        let kind = attribute(libc::IFLA_INFO_KIND, b"veth\0");
        let link = link(&[
            attribute(libc::IFLA_IFNAME, b"\xff\n\0"),
            attribute(libc::IFLA_STATS64, b"cut"),
            attribute(libc::IFLA_LINKINFO, &kind),
            attribute(libc::IFLA_LINK, &9u32.to_ne_bytes()),
        ]);
        let link = link.unwrap();
        assert_eq!(
            (link.index, link.peer, link.peer_elsewhere),
            (7, Some(9), false)
        );
        assert_eq!(link.describe(), "?? (veth)");
    }

    #[test]
    fn what_is_wanted_and_cut_off_is_an_error() {
        assert!(link(&[attribute(libc::IFLA_LINK, &[9, 0])]).is_err());
        assert!(link(&[attribute(libc::IFLA_LINKINFO, &[9, 0, 1, 0])]).is_err());
        let mut address = vec![INET, 24, 0, 0, 7, 0, 0, 0];
        address.extend(attribute(libc::IFA_LOCAL, &[10, 0, 0]));
        assert!(read_address(&address).is_err());
        assert!(read_route(&[1; ROUTE_BYTES - 1]).is_err());
    }
}
