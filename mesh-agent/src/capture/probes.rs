//! Kubelet's probes: who kubelet is, and to which ports of which pods its connections pass.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_common::{ProbePort, map_name, mapped_v4};

use super::Capture;
use super::abi::{self, Abi};
use super::error::Result;
use super::pods::{absent, check};

/// A cgroup of the v2 hierarchy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupRef {
    /// The kernel's id of it.
    pub id: u64,
    /// Its depth; the hierarchy's root is 0.
    pub level: u32,
}

impl Capture {
    /// Connections of processes in this cgroup or below it pass as probes from now on, if they come
    /// from the network namespace of this cookie; nobody's where there is none.
    ///
    /// # Errors
    /// If the map can't be changed; then what was said before stays.
    pub fn set_kubelet(&mut self, node_netns_cookie: u64, cgroup: Option<CgroupRef>) -> Result<()> {
        let config = self.maps.config.get(&0, 0);
        let Abi(mut config) = config.map_err(abi::failed(map_name::CONFIG))?;
        let before = config;
        let cgroup = cgroup.unwrap_or_default();
        config.node_netns_cookie = node_netns_cookie;
        config.kubelet_cgroup_id = cgroup.id;
        config.kubelet_cgroup_level = cgroup.level;
        if config == before {
            return Ok(());
        }
        self.maps.set_config(config)
    }

    /// Kubelet's connections pass to these ports of a pod, on each of its addresses, and to no others
    /// of it. A port that passes already passes all the while.
    ///
    /// # Errors
    /// If the map can't be read or changed, or is full; some of what is new may then be missing.
    pub fn set_probe_ports(
        &mut self,
        slot: u32,
        addresses: &[IpAddr],
        ports: &BTreeSet<u16>,
    ) -> Result<()> {
        check(slot)?;
        let keys = addresses.iter().flat_map(|address| {
            ports.iter().map(|port| ProbePort {
                address: bytes(*address),
                port: u32::from(*port),
            })
        });
        let wanted: BTreeSet<ProbePort> = keys.collect();
        let known: BTreeSet<ProbePort> = self.probe_keys(slot)?.into_iter().collect();
        let map = &mut self.maps.probe_ports;
        for old in known.difference(&wanted) {
            absent(map.remove(&Abi(*old))).map_err(abi::failed(map_name::PROBE_PORTS))?;
        }
        for new in wanted.difference(&known) {
            let inserted = map.insert(Abi(*new), slot, 0);
            inserted.map_err(abi::failed(map_name::PROBE_PORTS))?;
        }
        Ok(())
    }

    /// Ports of a pod that kubelet's connections pass to.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn probe_ports(&self, slot: u32) -> Result<BTreeSet<u16>> {
        check(slot)?;
        let keys = self.probe_keys(slot)?.into_iter();
        Ok(keys.filter_map(|key| key.port.try_into().ok()).collect())
    }

    /// Probes that arrived at a pod's app since it was enrolled.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn probes_passed(&self, slot: u32) -> Result<u64> {
        check(slot)?;
        let count = self.maps.probed.get(&slot, 0);
        count.map_err(abi::failed(map_name::PROBED))
    }

    /// Probes of the node that are on their way: between kubelet's `connect` and the app's end.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn probes_on_their_way(&self) -> Result<usize> {
        let keys = self.maps.probes.keys().collect::<Result<Vec<_>, _>>();
        Ok(keys.map_err(abi::failed(map_name::PROBES))?.len())
    }

    fn probe_keys(&self, slot: u32) -> Result<Vec<ProbePort>> {
        let entries = self.maps.probe_ports.iter();
        let own = entries.filter_map(|entry| match entry {
            Ok((Abi(key), of)) => (of == slot).then_some(Ok(key)),
            Err(e) => Some(Err(e)),
        });
        own.collect::<Result<_, _>>()
            .map_err(abi::failed(map_name::PROBE_PORTS))
    }
}

/// An address as the programs have it.
fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}
