//! Dumps of links, addresses and routes of the calling thread's network namespace.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::events::word;

/// Most entries of a dump that are read: a pod can have as many addresses and routes as it likes.
pub(super) const DUMP_LIMIT: usize = 1_024;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// `None` for what has no kind: physical devices, and the loopback.
    pub(super) kind: Option<InfoKind>,
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
        let kind = self.kind.as_ref().map(ToString::to_string);
        let kind = word(kind.as_deref().unwrap_or("without a kind"));
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

/// What a dump gave: at most `limit` entries.
fn dump(request: RouteNetlinkMessage, limit: usize) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
    packet.header.flags = NLM_F_DUMP | NLM_F_REQUEST;
    packet.header.sequence_number = 1;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        if read_packet(&received, limit, &mut found)? {
            return Ok(found);
        }
    }
}

/// Takes in the messages of one packet; true with the last one of the dump, or the last that is
/// wanted.
pub(super) fn read_packet(
    packet: &[u8],
    limit: usize,
    found: &mut Vec<RouteNetlinkMessage>,
) -> io::Result<bool> {
    let mut rest = packet;
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(e) => return Err(e.to_io()),
            NetlinkPayload::InnerMessage(inner) => found.push(inner),
            _ => {}
        }
        if found.len() >= limit {
            return Ok(true);
        }
        let len = usize::try_from(message.header.length).unwrap_or(0);
        // Messages are aligned to 4 bytes.
        let next = len.next_multiple_of(4).max(16);
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(false)
}

/// Every device, or the first `limit`.
pub(super) fn links(limit: usize) -> io::Result<Vec<Link>> {
    let messages = dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), limit)?;
    let links = messages.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(read_link(&link)),
        _ => None,
    });
    Ok(links.collect())
}

pub(super) fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        loopback: message.header.link_layer_type == LinkLayerType::Loopback,
        peer: None,
        peer_elsewhere: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// Addresses of every device, link-local ones included; the first [`DUMP_LIMIT`].
pub(super) fn addresses() -> io::Result<Vec<Address>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let addresses = dump(request, DUMP_LIMIT)?.into_iter();
    Ok(addresses
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => read_address(&message),
            _ => None,
        })
        .collect())
}

pub(super) fn read_address(message: &AddressMessage) -> Option<Address> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    // On a point-to-point device ADDRESS is the peer's.
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(local) => Some(*local),
        _ => None,
    });
    let address = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    let index = message.header.index;
    Some(Address { index, address })
}

/// Unicast routes of every table; the first [`DUMP_LIMIT`] of each family.
pub(super) fn routes() -> io::Result<Vec<Route>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for message in dump(RouteNetlinkMessage::GetRoute(request), DUMP_LIMIT)? {
            let RouteNetlinkMessage::NewRoute(route) = message else {
                continue;
            };
            if route.header.kind == RouteType::Unicast {
                found.push(read_route(&route, family == AddressFamily::Inet6));
            }
        }
    }
    Ok(found)
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

pub(super) fn read_route(message: &RouteMessage, v6: bool) -> Route {
    let mut route = Route {
        destination: None,
        prefix_len: message.header.destination_prefix_length,
        v6,
        oif: None,
        table: message.header.table.into(),
        by_kernel: message.header.protocol == RouteProtocol::Kernel,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.destination = Some(IpAddr::V4(*address));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                route.destination = Some(IpAddr::V6(*address));
            }
            RouteAttribute::Oif(index) => route.oif = Some(*index),
            RouteAttribute::Table(table) => route.table = *table,
            _ => {}
        }
    }
    route
}
