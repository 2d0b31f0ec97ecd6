//! Dumps of links, addresses and routes of the calling thread's network namespace.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

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

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// `None` for a default route.
    pub(super) destination: Option<IpAddr>,
    pub(super) v6: bool,
    pub(super) oif: Option<u32>,
}

fn dump(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
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
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                _ => {}
            }
            let len = usize::try_from(message.header.length).unwrap_or(0);
            // Messages are aligned to 4 bytes.
            let next = len.next_multiple_of(4).max(16);
            rest = rest.get(next..).unwrap_or_default();
        }
    }
}

/// Every device.
pub(super) fn links() -> io::Result<Vec<Link>> {
    let messages = dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links = messages.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(read_link(&link)),
        _ => None,
    });
    Ok(links.collect())
}

fn read_link(message: &LinkMessage) -> Link {
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

/// Every address on a device other than the loopback, link-local ones included.
pub(super) fn addresses(loopback: &[u32]) -> io::Result<Vec<IpAddr>> {
    let messages = dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let addresses = messages.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(a) if !loopback.contains(&a.header.index) => {
            let local = a.attributes.iter().find_map(|attribute| match attribute {
                // On a point-to-point device ADDRESS is the peer's.
                AddressAttribute::Local(local) => Some(*local),
                _ => None,
            });
            local.or_else(|| {
                a.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            })
        }
        _ => None,
    });
    Ok(addresses.collect())
}

/// Every unicast route.
pub(super) fn routes() -> io::Result<Vec<Route>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for message in dump(RouteNetlinkMessage::GetRoute(request))? {
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

fn read_route(message: &RouteMessage, v6: bool) -> Route {
    let mut route = Route {
        destination: None,
        v6,
        oif: None,
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
            _ => {}
        }
    }
    route
}
