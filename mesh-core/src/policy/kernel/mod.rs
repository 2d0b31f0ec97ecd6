//! What the kernel programs decide of a pod's policy: denials that hold whatever a worker would
//! find out, and UDP, which no worker carries.

mod attributed;
mod compile;
mod layout;
mod needs;
mod said;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;

use super::decision::PodPolicy;
use crate::model::Mesh;
use compile::Compiler;

pub use needs::{Need, Needs};

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

/// Most verdicts of one pod, over all its blocks.
pub const MAX_VERDICTS: usize = 61_439;

/// What one block has, by class and port; port 0 stands for those that have no verdict of their
/// own.
pub type Verdicts = BTreeMap<(KernelClass, u16), KernelVerdict>;

/// A pod's policy as the kernel programs have it: of the longest prefix that holds the remote's
/// address, the verdict for the port, or else the one for port 0, which stands for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelPolicy {
    /// IPv4 blocks in v4-mapped form.
    pub prefixes: BTreeMap<Ipv6Net, Verdicts>,
    /// Blocks that were left out for [`MAX_PREFIXES`] or [`MAX_VERDICTS`].
    pub left_out: usize,
}

impl KernelPolicy {
    /// From a pod's policy and what discovery knows.
    ///
    /// TCP is denied where every decision that the worker could come to for that address and
    /// port is [`policy_denied`](crate::reason::Reason::PolicyDenied): so an address block that a DENY
    /// names is not denied at a service's virtual address in it, unless all the service's
    /// endpoints are. UDP is allowed where [`PodPolicy::decide`] allows it to or from a plain
    /// peer; to a virtual address unless a DENY matches one of the endpoints behind it.
    ///
    /// `own` are the pod's own addresses: TCP to them stays in the pod, and is nobody's to deny.
    ///
    /// Looks at the mesh only for what needs it: at services for denials, at workloads for
    /// terms that name a peer by more than its address.
    #[must_use]
    pub fn new(policy: &PodPolicy, own: &[IpAddr], mesh: &Mesh) -> Self {
        Compiler::new(policy, own, mesh).compile()
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
        verdict(verdicts, class, port)
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

fn verdict(verdicts: &Verdicts, class: KernelClass, port: u16) -> Option<KernelVerdict> {
    let exact = verdicts.get(&(class, port));
    exact.or_else(|| verdicts.get(&(class, 0))).copied()
}
