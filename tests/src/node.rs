//! Hosts on the fabric: nodes, the control component's host, a host outside the mesh.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::netns::Netns;

/// Index of the fabric's addresses: `10.201.0.<n>` and `fd00:c9::<n>`.
pub(crate) const CONTROL_HOST: u8 = 2;
pub(crate) const FIRST_NODE: u8 = 10;
pub(crate) const OUTSIDE_HOST: u8 = 100;

/// A host with one foot (`eth0`) on the fabric.
#[derive(Debug)]
pub struct Host {
    /// Its network namespace.
    pub netns: Netns,
    /// Name of its port on the fabric's bridge.
    pub port: String,
    /// A folder of its own.
    pub folder: PathBuf,
    name: String,
    number: u8,
}

impl Host {
    pub(crate) fn new(name: &str, number: u8, netns: Netns, scratch: &Path) -> Result<Self> {
        let folder = scratch.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            netns,
            port: format!("f-{name}"),
            folder,
            name: name.to_owned(),
            number,
        })
    }

    /// Its name, such as `node-a`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last letter of its name.
    pub(crate) fn letter(&self) -> char {
        self.name.chars().next_back().unwrap_or('x')
    }

    /// Its address on the fabric.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 201, 0, self.number)
    }

    /// Its IPv6 address on the fabric.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0xc9, 0, 0, 0, 0, 0, u16::from(self.number))
    }

    /// Joins it to the bridge in the fabric.
    pub(crate) fn plug_in(&self, fabric: &Netns) -> Result<()> {
        self.plug_beside(fabric)?;
        fabric.ip(&format!("link set {} master br0 up\n", self.port))
    }

    /// Gives it its device and addresses, joined to nothing.
    pub(crate) fn plug_beside(&self, fabric: &Netns) -> Result<()> {
        fabric.ip(&format!(
            "link add {} type veth peer name eth0 netns {}\n",
            self.port,
            self.netns.name(),
        ))?;
        self.netns.ip(&format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n",
            self.v4(),
            self.v6()
        ))
    }

    /// Routes the pods of a node through it.
    pub(crate) fn route_pods_of(&self, node: &Self) -> Result<()> {
        let (v4, v6) = pod_networks(node.number);
        self.netns.ip(&format!(
            "route add {v4} via {}\nroute add {v6} via {}\n",
            node.v4(),
            node.v6()
        ))
    }

    /// The addresses of a pod with this index on this node.
    pub(crate) fn pod_addresses(&self, index: u8) -> (Ipv4Addr, Ipv6Addr) {
        (
            Ipv4Addr::new(10, 202, self.number, index),
            Ipv6Addr::new(
                0xfd00,
                0xca,
                u16::from(self.number),
                0,
                0,
                0,
                0,
                u16::from(index),
            ),
        )
    }

    /// Whether an address is this host's own or one of its pods'.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                v4 == self.v4() || [a, b, c] == [10, 202, self.number]
            }
            IpAddr::V6(v6) => {
                v6 == self.v6() || v6.segments()[..3] == [0xfd00, 0xca, u16::from(self.number)]
            }
        }
    }
}

fn pod_networks(number: u8) -> (String, String) {
    (
        format!("10.202.{number}.0/24"),
        format!("fd00:ca:{number:x}::/64"),
    )
}
