//! One resource of discovery: encoded once, its version the hash of its encoding.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;
use mesh_api::convert::policy::PolicyEntry;
use mesh_api::convert::security::{authorization_to_istio, static_policies};
use mesh_api::convert::workload_to_wire;
use mesh_api::workload as wire;
use mesh_api::{ADDRESS_TYPE_URL, AUTHORIZATION_TYPE_URL, POLICY_TYPE_URL};
use mesh_core::model::{Service, Workload};
use mesh_core::policy::kernel::Needs;
use mesh_core::policy::{AuthenticationPolicy, AuthorizationPolicy};
use prost::Message;

use super::CLUSTER_ID;

/// The types of resources that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// Workloads and services.
    Address,
    /// Authorization policies and authentication scopes.
    Policy,
    /// What of the authorization policies a data plane of Istio's can be told. It follows from
    /// [`Policy`](Self::Policy).
    Istio,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::Address, Self::Policy, Self::Istio];
    /// Those that come from sources.
    pub(super) const SOURCES: [Self; 2] = [Self::Address, Self::Policy];

    /// Its URL in delta xDS.
    #[must_use]
    pub const fn url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE_URL,
            Self::Policy => POLICY_TYPE_URL,
            Self::Istio => AUTHORIZATION_TYPE_URL,
        }
    }

    /// The type with this URL.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// What a resource says, as the model has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod, and the keys of the policies that it names for data planes of Istio's.
    Workload(Arc<Workload>, Vec<String>),
    /// A service.
    Service(Arc<Service>),
    /// An authorization policy, and what of the mesh it takes to enforce it.
    Authorization(Arc<AuthorizationPolicy>, Needs),
    /// An authentication scope.
    Authentication(Arc<AuthenticationPolicy>),
    /// A policy in Istio's terms, and whether they say all of it: otherwise more is refused.
    Istio(bool),
}

/// One resource of discovery.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Workload uid, `<namespace>/<hostname>`, or `<kind>/<namespace>/<name>` of a policy; in Istio's
    /// terms `<namespace>/<name>`.
    pub name: Arc<str>,
    /// Hash of the content: the same in every replica and after every restart.
    pub version: Arc<str>,
    /// The encoded message of its type.
    pub body: Vec<u8>,
    /// What it says.
    pub subject: Subject,
}

impl Resource {
    /// A workload.
    #[must_use]
    pub fn workload(workload: impl Into<Arc<Workload>>) -> Self {
        Self::workload_with(workload.into(), Vec::new())
    }

    /// The same, naming policies.
    pub(super) fn workload_with(workload: Arc<Workload>, policies: Vec<String>) -> Self {
        let message = wire::Workload {
            authorization_policies: policies.clone(),
            ..workload_to_wire(&workload, CLUSTER_ID)
        };
        let body = wire::address::Type::Workload(message);
        let name = workload.uid.clone();
        Self::address(name, body, Subject::Workload(workload, policies))
    }

    /// A service.
    #[must_use]
    pub fn service(service: impl Into<Arc<Service>>) -> Self {
        let service = service.into();
        let body = wire::address::Type::Service((&*service).into());
        let name = service.key.clone();
        Self::address(name, body, Subject::Service(service))
    }

    fn address(name: Arc<str>, body: wire::address::Type, subject: Subject) -> Self {
        let body = wire::Address { r#type: Some(body) };
        Self::new(name, body.encode_to_vec(), subject)
    }

    /// An authorization policy.
    #[must_use]
    pub fn authorization(policy: impl Into<Arc<AuthorizationPolicy>>) -> Self {
        let policy = policy.into();
        let needs = Needs::of(&policy);
        let entry = PolicyEntry::Authorization(AuthorizationPolicy::clone(&policy));
        Self::policy(&entry, Subject::Authorization(policy, needs))
    }

    /// An authentication scope.
    #[must_use]
    pub fn authentication(policy: impl Into<Arc<AuthenticationPolicy>>) -> Self {
        let policy = policy.into();
        let entry = PolicyEntry::Authentication(AuthenticationPolicy::clone(&policy));
        Self::policy(&entry, Subject::Authentication(policy))
    }

    fn policy(entry: &PolicyEntry, subject: Subject) -> Self {
        let body = entry.to_wire().encode_to_vec();
        Self::new(entry.resource_name().into(), body, subject)
    }

    /// What a data plane of Istio's is told of an authorization policy, if it is to decide by it.
    pub(super) fn istio(policy: &AuthorizationPolicy) -> Option<Self> {
        let converted = authorization_to_istio(policy)?;
        let body = converted.policy.encode_to_vec();
        let exact = Subject::Istio(converted.exact);
        Some(Self::new(policy.key.clone(), body, exact))
    }

    /// What holds at a data plane of Istio's without any policy.
    pub(super) fn istio_static() -> impl Iterator<Item = Self> {
        let policies = static_policies().into_iter();
        policies.map(|policy| {
            let key = format!("{}/{}", policy.namespace, policy.name);
            Self::new(key.into(), policy.encode_to_vec(), Subject::Istio(true))
        })
    }

    fn new(name: Arc<str>, body: Vec<u8>, subject: Subject) -> Self {
        let hash = digest::digest(&digest::SHA256, &body);
        let hash = hash.as_ref()[..8].iter();
        let version: String = hash.map(|byte| format!("{byte:02x}")).collect();
        Self {
            name,
            version: version.into(),
            body,
            subject,
        }
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> ResourceType {
        match self.subject {
            Subject::Workload(..) | Subject::Service(_) => ResourceType::Address,
            Subject::Authorization(..) | Subject::Authentication(_) => ResourceType::Policy,
            Subject::Istio(_) => ResourceType::Istio,
        }
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        match &self.subject {
            Subject::Workload(workload, _) => &workload.addresses,
            Subject::Service(service) => &service.addresses,
            Subject::Authorization(..) | Subject::Authentication(_) | Subject::Istio(_) => &[],
        }
    }

    /// `<network>/<ip>` for each of its addresses; the mesh has one network, without a name.
    pub fn aliases(&self) -> impl Iterator<Item = String> {
        self.addresses().iter().map(|address| format!("/{address}"))
    }

    /// Of its name and version.
    pub(super) fn hash(&self) -> u64 {
        let mut hash = digest::Context::new(&digest::SHA256);
        for text in [&self.name, &self.version] {
            hash.update(text.as_bytes());
            hash.update(b"\n");
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finish().as_ref()[..8]);
        u64::from_be_bytes(first)
    }
}

/// The address in a name of the form `<network>/<ip>`, with the network that there is.
pub(super) fn address_in_name(name: &str) -> Option<IpAddr> {
    name.strip_prefix('/')?.parse().ok()
}
