//! A pod's devices: which can be walled from the node, which need no wall, and which leave it
//! past any wall.

use super::events::word;
use super::netlink::Link;

/// Most devices a pod can have and be served.
pub(super) const MAX_DEVICES: usize = 64;

const VETH: &str = "veth";

/// Kinds whose frames leave through the pod's other devices, go to a process, or nowhere. The
/// kernel itself puts the tunnels' fallback devices into every namespace. `WireGuard` is not among
/// them: its packets go through the namespace it was made in, which nobody can ask for.
const CARRIED_BY_OTHERS: [&str; 28] = [
    "dummy",
    "ifb",
    "nlmon",
    "tun",
    "bridge",
    "bond",
    "team",
    "vrf",
    "vlan",
    "macvlan",
    "macvtap",
    "ipvlan",
    "ipvtap",
    "macsec",
    "vxlan",
    "geneve",
    "xfrm",
    "ipip",
    "ip6tnl",
    "sit",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "erspan",
    "ip6erspan",
    "vti",
    "vti6",
];

/// A device that frames leave the pod by and that no wall can stand around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bare {
    /// Its index in the pod's namespace.
    pub(super) index: u32,
    /// Name and kind, for people.
    pub(super) what: String,
}

/// A pod's devices but the loopback, and those that need no wall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Devices {
    /// The node's end of each of the pod's veths.
    pub(super) walls: Vec<u32>,
    pub(super) bare: Vec<Bare>,
}

/// Sorts a pod's devices, by what the kernel says of them and of the node's.
pub(super) fn sort(pod_links: &[Link], node_links: &[Link]) -> Devices {
    let mut devices = Devices::default();
    for link in pod_links.iter().filter(|link| !link.loopback) {
        match place(link, pod_links, node_links) {
            Place::Walled(ifindex) => devices.walls.push(ifindex),
            Place::Inside => {}
            Place::Bare(what) => devices.bare.push(Bare {
                index: link.index,
                what: format!("{} ({what})", word(&link.name)),
            }),
        }
    }
    devices
}

/// Where a device's frames go.
enum Place {
    /// Through this device of the node.
    Walled(u32),
    /// To another device of the pod, or to no device at all.
    Inside,
    /// Elsewhere.
    Bare(String),
}

fn place(link: &Link, pod_links: &[Link], node_links: &[Link]) -> Place {
    match link.kind.as_deref() {
        Some(VETH) => place_veth(link, pod_links, node_links),
        Some(kind) if CARRIED_BY_OTHERS.contains(&kind) && !link.peer_elsewhere => Place::Inside,
        Some(kind) => Place::Bare(format!("of kind {}", word(kind))),
        None => Place::Bare("without a kind, as physical devices are".to_owned()),
    }
}

fn place_veth(link: &Link, pod_links: &[Link], node_links: &[Link]) -> Place {
    let ends = |ends: &[Link], elsewhere| {
        let mut ends = ends.iter();
        let end = ends.find(|end| {
            Some(end.index) == link.peer
                && end.kind.as_deref() == Some(VETH)
                && end.peer == Some(link.index)
                && end.peer_elsewhere == elsewhere
        });
        end.map(|end| end.index)
    };
    if !link.peer_elsewhere {
        return match ends(pod_links, false) {
            Some(_) => Place::Inside,
            None => Place::Bare("a veth whose other end is not to be found".to_owned()),
        };
    }
    match ends(node_links, true) {
        Some(ifindex) => Place::Walled(ifindex),
        None => Place::Bare("a veth whose other end is not in the node's namespace".to_owned()),
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
