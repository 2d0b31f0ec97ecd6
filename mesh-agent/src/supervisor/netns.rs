//! A pod's network namespace: opening it, telling it from every other, and what of it
//! decides whether and how the pod can be enrolled.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use mesh_common::{POD_HAS_V4, POD_HAS_V6};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use super::devices::{self, Devices, MAX_DEVICES};
use super::netlink::{self, Address, Link, Route};
use crate::capture::netns_cookie;

/// What tells one network namespace from another, over its whole life: the cookie is never
/// used again, device and inode are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct NetnsId {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) cookie: u64,
}

/// Why a network namespace can't be a pod's, or its pod can't be enrolled.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetnsError {
    #[error("opening the network namespace {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} can't be entered as a network namespace: {why}")]
    Enter { path: PathBuf, why: String },
    #[error("{0} is the node's own network namespace; pods on the host network can't be enrolled")]
    NodesOwn(PathBuf),
    #[error("in the pod's network namespace: {action} failed: {source}")]
    Inside {
        action: &'static str,
        source: io::Error,
    },
    #[error(
        "the network namespace has {found:?}, control says that the pod has {wanted}: it is another pod's, or its addresses are not set up yet"
    )]
    Address { wanted: IpAddr, found: Vec<IpAddr> },
    #[error("the pod has no device but the loopback")]
    NoDevice,
}

/// An open network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    fd: OwnedFd,
    pub(super) id: NetnsId,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Netns {
    /// Opens a namespace that may be a pod's.
    pub(super) fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let own = std::fs::metadata("/proc/self/ns/net").map_err(failed)?;
        if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
            return Err(NetnsError::NodesOwn(path.to_owned()));
        }
        let fd = OwnedFd::from(file);
        let cookie = netns_cookie(fd.as_fd()).map_err(|e| NetnsError::Enter {
            path: path.to_owned(),
            why: e.to_string(),
        })?;
        let id = NetnsId {
            device: found.dev(),
            inode: found.ino(),
            cookie,
        };
        Ok(Self { fd, id })
    }

    /// Runs `work` inside, on a thread that ends with it: the supervisor itself never
    /// leaves the node's namespace.
    pub(super) fn inside<T: Send>(
        &self,
        action: &'static str,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, NetnsError> {
        let enter_and_work = || {
            setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        thread::scope(|scope| scope.spawn(enter_and_work).join())
            .unwrap_or_else(|_| Err(io::Error::other("the thread that entered it panicked")))
            .map_err(|source| NetnsError::Inside { action, source })
    }
}

/// A pod's devices, addresses and routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
}

/// What enrolment needs to know of a pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// `POD_HAS_V4`, `POD_HAS_V6`.
    pub(super) flags: u32,
    pub(super) devices: Devices,
}

/// Looks at what a namespace has. Devices beyond [`MAX_DEVICES`] by one are left out, and so are
/// addresses and routes beyond a limit.
pub(super) fn look(netns: &Netns) -> Result<Contents, NetnsError> {
    netns.inside("listing devices, addresses and routes", || {
        Ok(Contents {
            links: netlink::links(MAX_DEVICES + 1)?,
            addresses: netlink::addresses()?,
            routes: netlink::routes()?,
        })
    })
}

/// How a pod's devices are tied to the node's.
pub(super) fn match_devices(links: &[Link]) -> Result<Devices, NetnsError> {
    let node_links = netlink::links(usize::MAX).map_err(|source| NetnsError::Inside {
        action: "listing the node's devices",
        source,
    })?;
    Ok(devices::sort(links, &node_links))
}

/// Checks that `netns` is that of a pod with these addresses.
pub(super) fn inspect(netns: &Netns, pod_addresses: &[IpAddr]) -> Result<Facts, NetnsError> {
    let contents = look(netns)?;
    let loopback = |index| {
        contents
            .links
            .iter()
            .any(|l| l.loopback && l.index == index)
    };
    let outer = contents.addresses.iter().filter(|a| !loopback(a.index));
    let found: Vec<IpAddr> = outer.map(|a| a.address).collect();
    if let Some(&wanted) = pod_addresses.iter().find(|a| !found.contains(a)) {
        return Err(NetnsError::Address { wanted, found });
    }
    let devices = match_devices(&contents.links)?;
    if devices.walls.is_empty() && devices.bare.is_empty() {
        return Err(NetnsError::NoDevice);
    }
    Ok(Facts {
        flags: family_flags(pod_addresses, &contents.links, &contents.routes),
        devices,
    })
}

/// A family counts if the pod has an address of it, and a route that leads out.
fn family_flags(pod_addresses: &[IpAddr], links: &[Link], routes: &[Route]) -> u32 {
    let is_loopback = |index| links.iter().any(|l| l.loopback && l.index == index);
    let leads_out = |route: &&Route| {
        let narrow = match route.destination {
            // fe80::/64 and ff00::/8 are there as soon as a device is up.
            Some(IpAddr::V6(a)) => a.is_unicast_link_local() || a.is_multicast(),
            _ => false,
        };
        !narrow && !route.oif.is_some_and(is_loopback)
    };
    let mut flags = 0;
    for (v6, flag) in [(false, POD_HAS_V4), (true, POD_HAS_V6)] {
        let address = pod_addresses.iter().any(|a| a.is_ipv6() == v6);
        let route = routes.iter().filter(leads_out).any(|r| r.v6 == v6);
        if address && route {
            flags |= flag;
        }
    }
    flags
}

#[cfg(test)]
#[path = "netns_tests.rs"]
mod tests;
