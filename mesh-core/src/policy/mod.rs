//! Who may talk to whom: authorization policies and authentication scopes as the operator
//! wrote them, and decisions on flows.
//!
//! DENY comes before ALLOW, and what no rule allows is refused, in both directions: outbound at
//! the source's worker, inbound at the destination's.

mod attributes;
mod authentication;
mod blocks;
mod clause;
mod decision;
mod index;
pub mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::Identity;
use crate::model::{ServiceKey, Workload};

pub use clause::canonical;
pub use decision::{Decision, Flow, PORT_DNS, Peer, PodPolicy};

/// The namespace whose policies may speak for the whole mesh.
pub const MESH_NAMESPACE: &str = "nodemesh-system";

/// Labels of a pod.
pub type Labels = BTreeMap<String, String>;

/// `<namespace>/<name>` of a policy.
pub type PolicyKey = Arc<str>;

/// Which workloads a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Every workload of the mesh. Only policies in [`MESH_NAMESPACE`] may say so.
    Mesh,
    /// Every workload of the policy's own namespace.
    Namespace,
    /// The workloads of a service in the policy's own namespace.
    Service(ServiceKey),
    /// Workloads of the policy's own namespace that have all these labels.
    Labels(Labels),
}

impl Target {
    /// Whether a policy of `namespace` with this target is for `workload`.
    #[must_use]
    pub fn selects(&self, namespace: &str, workload: &Workload) -> bool {
        let own = workload.identity.namespace() == namespace;
        match self {
            Self::Mesh => namespace == MESH_NAMESPACE,
            Self::Namespace => own,
            Self::Service(key) => own && workload.services.contains_key(key),
            Self::Labels(labels) => own && has_labels(&workload.labels, labels),
        }
    }

    /// The highest [`Target::nearness`].
    pub(crate) const NEAREST: u8 = 2;

    /// How near it is to a workload that it selects: of two that say different the nearer holds.
    pub(crate) fn nearness(&self) -> u8 {
        match self {
            Self::Mesh => 0,
            Self::Namespace => 1,
            Self::Service(_) | Self::Labels(_) => Self::NEAREST,
        }
    }
}

/// Whether `labels` has everything of `wanted`.
#[must_use]
pub fn has_labels(labels: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Which way a flow goes, seen from the workload that a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Decided at the destination's worker; the peer is the source.
    Inbound,
    /// Decided at the source's worker; the peer is the destination.
    Outbound,
}

/// What a policy does with what its rules match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Lets it through, unless a DENY matches.
    Allow,
    /// Refuses it.
    Deny,
}

/// A transport protocol that policy speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, which workers carry.
    Tcp,
    /// UDP, which the kernel programs decide on.
    Udp,
}

/// A port with its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortTerm {
    /// The port on the destination's workload, in both directions; `None` for every port.
    pub port: Option<u16>,
    /// Its protocol.
    pub protocol: Protocol,
}

/// A peer, as a rule names it: everything that is given must hold. An empty one is not
/// allowed by the sources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerTerm {
    /// Its proven identity.
    pub identity: Option<Identity>,
    /// The namespace in its proven identity.
    pub namespace: Option<Arc<str>>,
    /// A service it belongs to; outbound also the service that was dialled.
    pub service: Option<ServiceKey>,
    /// Labels it has. Without `namespace` they are those of pods in the policy's own
    /// namespace, unless the policy is the mesh's: labels are whatever a tenant writes.
    pub labels: Labels,
    /// Its address is in this block. A pod of the mesh has one as well.
    pub cidr: Option<IpNet>,
}

/// One rule: any of the peers, on any of the ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Peers; none means every member of the mesh (and, in a DENY, everybody).
    pub peers: Vec<PeerTerm>,
    /// Ports; none means every port of TCP (and, in a DENY, of UDP).
    pub ports: BTreeSet<PortTerm>,
}

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AuthorizationPolicy {
    /// `<namespace>/<name>`.
    pub key: PolicyKey,
    /// The workloads it is for.
    pub target: Target,
    /// The direction it decides.
    pub direction: Direction,
    /// What it does.
    pub action: Action,
    /// Rules, any of which matches; none match nothing.
    pub rules: Vec<Rule>,
}

impl AuthorizationPolicy {
    /// The namespace it is in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        namespace_of(&self.key)
    }

    /// Whether it is for this workload.
    #[must_use]
    pub fn selects(&self, workload: &Workload) -> bool {
        self.target.selects(self.namespace(), workload)
    }
}

/// How a workload takes inbound connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AuthenticationMode {
    /// Mutual TLS only.
    #[default]
    Strict,
    /// Mutual TLS, and plaintext from outside the mesh as far as policy names the caller's
    /// address.
    Permissive,
}

/// An authentication scope: the nearest one to a port of a workload wins, that is labels or
/// service before namespace before mesh, and in it the port before the rest. Among equally near
/// ones strict wins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AuthenticationPolicy {
    /// `<namespace>/<name>`.
    pub key: PolicyKey,
    /// The workloads it is for.
    pub target: Target,
    /// For every port that `ports` doesn't have; `None` leaves them to the next scope.
    pub mode: Option<AuthenticationMode>,
    /// For single ports of the workload.
    pub ports: BTreeMap<u16, AuthenticationMode>,
}

impl AuthenticationPolicy {
    /// The namespace it is in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        namespace_of(&self.key)
    }

    /// Whether it is for this workload.
    #[must_use]
    pub fn selects(&self, workload: &Workload) -> bool {
        self.target.selects(self.namespace(), workload)
    }
}

/// The namespace in a policy's key.
pub(crate) fn namespace_of(key: &str) -> &str {
    key.split_once('/').map_or(key, |(namespace, _)| namespace)
}
