//! What a change can be about, as streams take an interest in it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::resource::{Resource, ResourceType, Subject, address_in_name};

/// What a stream can take an interest in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Everything of a type.
    All(ResourceType),
    /// What has this name.
    Name(ResourceType, Arc<str>),
    /// Who is at this address.
    Address(IpAddr),
    /// The workloads of a node.
    Node(Arc<str>),
    /// The workloads of a service.
    Member(Arc<str>),
    /// The workloads and services of a namespace.
    Namespace(Arc<str>),
    /// The services with this port.
    Port(u16),
    /// The workloads at which a service leads to this port from another.
    Target(u16),
    /// The workloads with an address in this block.
    Block(IpNet),
    /// The services with a virtual address in this block.
    Virtual(IpNet),
    /// The policies of a namespace. Nobody is sent them for that alone.
    Policies(Arc<str>),
}

impl Topic {
    /// What a name or alias, as a client asks for it, is about.
    #[must_use]
    pub fn named(kind: ResourceType, name: &str) -> Self {
        match (kind, address_in_name(name)) {
            (ResourceType::Address, Some(address)) => Self::Address(address),
            _ => Self::Name(kind, name.into()),
        }
    }

    /// Whether it is found by comparing blocks of addresses, and not by looking it up.
    pub(crate) fn is_block(&self) -> bool {
        matches!(self, Self::Block(_) | Self::Virtual(_))
    }

    /// Whether a resource is about it, for topics that [`is_block`](Self::is_block).
    pub(crate) fn covers(&self, resource: &Resource) -> bool {
        match (self, &resource.subject) {
            (Self::Block(block), Subject::Workload(workload, _)) => {
                workload.addresses.iter().any(|a| block.contains(a))
            }
            (Self::Virtual(block), Subject::Service(service)) => {
                service.addresses.iter().any(|a| block.contains(a))
            }
            _ => false,
        }
    }
}

impl Resource {
    /// All that it is about, but for blocks of addresses.
    pub fn topics(&self) -> impl Iterator<Item = Topic> {
        let kind = self.kind();
        let mut topics = vec![Topic::All(kind), Topic::Name(kind, self.name.clone())];
        match &self.subject {
            Subject::Workload(workload, _) => {
                topics.push(Topic::Node(workload.node.as_str().into()));
                topics.push(Topic::Namespace(workload.identity.namespace().into()));
                topics.extend(workload.addresses.iter().copied().map(Topic::Address));
                topics.extend(workload.services.keys().cloned().map(Topic::Member));
                let targets = workload.translations().map(|(_, port)| port);
                topics.extend(targets.map(Topic::Target));
            }
            Subject::Service(service) => {
                topics.push(Topic::Namespace(service.namespace.as_str().into()));
                topics.extend(service.addresses.iter().copied().map(Topic::Address));
                topics.extend(service.ports.iter().copied().map(Topic::Port));
            }
            Subject::Authorization(policy, _) => {
                topics.push(Topic::Policies(policy.namespace().into()));
            }
            Subject::Authentication(policy) => {
                topics.push(Topic::Policies(policy.namespace().into()));
            }
            Subject::Istio(_) => {}
        }
        topics.into_iter()
    }
}
