//! What the kernel programs decide of a pod's policy: denials that hold whatever a worker would
//! find out, and UDP, which no worker carries.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;

use super::decision::PodPolicy;
use crate::model::Mesh;

/// What is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KernelClass {
    /// TCP from the pod: refused at `connect` on [`KernelVerdict::Deny`], else the worker decides.
    TcpOut,
    /// UDP with a port of the remote: let through on [`KernelVerdict::Allow`] alone.
    UdpOut,
    /// UDP with a port of the pod: let through on [`KernelVerdict::Allow`] alone.
    UdpIn,
}

/// What a look-up gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelVerdict {
    /// Let through.
    Allow,
    /// Refused.
    Deny,
}

/// Most blocks of addresses of one pod; what doesn't fit is left to the worker (TCP) or stays
/// refused (UDP), and is told.
pub const MAX_PREFIXES: usize = 4096;

/// A pod's policy as the kernel programs have it: of the longest prefix that holds the remote's
/// address, the verdict for the port, or else the one for port 0, which stands for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelPolicy {
    /// IPv4 blocks in v4-mapped form.
    pub prefixes: BTreeMap<Ipv6Net, BTreeMap<(KernelClass, u16), KernelVerdict>>,
    /// Blocks that were left out for [`MAX_PREFIXES`].
    pub left_out: usize,
}

impl KernelPolicy {
    /// From a pod's policy and what discovery knows.
    #[must_use]
    pub fn new(_policy: &PodPolicy, _mesh: &Mesh) -> Self {
        Self::default()
    }

    /// The programs' look-up, in words that can be tested.
    #[must_use]
    pub fn look_up(&self, class: KernelClass, remote: IpAddr, port: u16) -> Option<KernelVerdict> {
        let remote: Ipv6Addr = match remote {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let verdicts = self
            .prefixes
            .iter()
            .filter(|(prefix, _)| prefix.contains(&remote))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map(|(_, verdicts)| verdicts)?;
        let exact = verdicts.get(&(class, port));
        exact.or_else(|| verdicts.get(&(class, 0))).copied()
    }

    /// Whether a UDP datagram between the pod's `local_port` and the remote passes, whichever of
    /// the two sends it.
    #[must_use]
    pub fn udp_passes(&self, remote: IpAddr, remote_port: u16, local_port: u16) -> bool {
        let allow = Some(KernelVerdict::Allow);
        self.look_up(KernelClass::UdpOut, remote, remote_port) == allow
            || self.look_up(KernelClass::UdpIn, remote, local_port) == allow
    }
}
