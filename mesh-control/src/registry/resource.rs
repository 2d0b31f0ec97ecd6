//! One resource of discovery: encoded once, its version the hash of its encoding.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use mesh_api::convert::policy::PolicyEntry;
use mesh_api::convert::workload_to_wire;
use mesh_api::workload as wire;
use mesh_api::{ADDRESS_TYPE_URL, POLICY_TYPE_URL};
use mesh_core::model::{Service, Workload};
use prost::Message;

use super::CLUSTER_ID;

/// The types of resources that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceType {
    /// Workloads and services.
    Address,
    /// Authorization policies and authentication scopes.
    Policy,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::Address, Self::Policy];

    /// Its URL in delta xDS.
    #[must_use]
    pub const fn url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE_URL,
            Self::Policy => POLICY_TYPE_URL,
        }
    }

    /// The type with this URL.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// One resource of discovery.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Workload uid, `<namespace>/<hostname>`, or `<kind>/<namespace>/<name>` of a policy.
    pub name: Arc<str>,
    /// Hash of the content: the same in every replica and after every restart.
    pub version: Arc<str>,
    /// `<network>/<ip>` for each of its addresses.
    pub aliases: Vec<String>,
    /// The encoded message of its type.
    pub body: Vec<u8>,
}

impl Resource {
    pub(super) fn workload(workload: &Workload) -> Self {
        let message = workload_to_wire(workload, CLUSTER_ID);
        let body = wire::address::Type::Workload(message);
        Self::address(workload.uid.clone(), &workload.addresses, body)
    }

    pub(super) fn service(service: &Service) -> Self {
        let body = wire::address::Type::Service(service.into());
        Self::address(service.key.clone(), &service.addresses, body)
    }

    fn address(name: Arc<str>, addresses: &[IpAddr], body: wire::address::Type) -> Self {
        let body = wire::Address { r#type: Some(body) };
        let aliases = addresses.iter().map(|a| format!("/{a}")).collect();
        Self::new(name, aliases, body.encode_to_vec())
    }

    pub(super) fn policy(entry: &PolicyEntry) -> Self {
        let body = entry.to_wire().encode_to_vec();
        Self::new(entry.resource_name().into(), Vec::new(), body)
    }

    fn new(name: Arc<str>, aliases: Vec<String>, body: Vec<u8>) -> Self {
        Self {
            name,
            version: shown(&digest::digest(&digest::SHA256, &body)),
            aliases,
            body,
        }
    }
}

/// The version of resources taken together.
pub(super) fn version_of_all<'a>(resources: impl Iterator<Item = &'a Arc<Resource>>) -> Arc<str> {
    let mut hash = digest::Context::new(&digest::SHA256);
    for resource in resources {
        for text in [&resource.name, &resource.version] {
            hash.update(text.as_bytes());
            hash.update(b"\n");
        }
    }
    shown(&hash.finish())
}

fn shown(hash: &digest::Digest) -> Arc<str> {
    let bytes = &hash.as_ref()[..8];
    let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    text.into()
}
