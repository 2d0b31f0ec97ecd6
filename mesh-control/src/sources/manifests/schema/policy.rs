//! The mesh's own kinds. Unlike in Kubernetes' objects an unknown field is a mistake here: a
//! misspelt one would change what a policy means. For the same reason a field that is there
//! without a value is one.

use std::collections::BTreeMap;

use mesh_core::policy::PolicyKey;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::check::DEFAULT_NAMESPACE;
use super::values::{
    Cidr, Mode, PolicyAction, PolicyDirection, PortKey, PortTerm, ServiceRef, SpiffeId, given,
    given_unique, unique,
};
use super::{Label, Name};

/// The API version of the mesh's own kinds.
pub(crate) const API_VERSION: &str = "nodemesh.dev/v1alpha1";

/// metadata. What API servers write in here is known, and ignored.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "known, so that everything else is a mistake")]
pub(crate) struct Metadata {
    pub(crate) name: Name,
    #[serde(default, deserialize_with = "given")]
    pub(crate) namespace: Option<Label>,
    labels: Option<IgnoredAny>,
    annotations: Option<IgnoredAny>,
    creation_timestamp: Option<IgnoredAny>,
    finalizers: Option<IgnoredAny>,
    generation: Option<IgnoredAny>,
    managed_fields: Option<IgnoredAny>,
    owner_references: Option<IgnoredAny>,
    resource_version: Option<IgnoredAny>,
    uid: Option<IgnoredAny>,
}

/// An object of one of the mesh's own kinds.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    bound = "S: Deserialize<'de>"
)]
#[expect(dead_code, reason = "known, so that everything else is a mistake")]
pub(crate) struct Object<S> {
    kind: IgnoredAny,
    api_version: IgnoredAny,
    pub(crate) metadata: Metadata,
    pub(crate) spec: S,
}

impl<S> Object<S> {
    /// The namespace it is in.
    pub(crate) fn namespace(&self) -> &str {
        let namespace = self.metadata.namespace.as_ref();
        namespace.map_or(DEFAULT_NAMESPACE, |label| &label.0)
    }

    /// `<namespace>/<name>`.
    pub(crate) fn key(&self) -> PolicyKey {
        format!("{}/{}", self.namespace(), self.metadata.name.0).into()
    }
}

/// spec of an AuthorizationPolicy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Authorization {
    #[serde(default, deserialize_with = "given")]
    pub(crate) target: Option<Target>,
    pub(crate) direction: PolicyDirection,
    pub(crate) action: PolicyAction,
    pub(crate) rules: Vec<Rule>,
}

/// spec of an AuthenticationPolicy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Authentication {
    #[serde(default, deserialize_with = "given")]
    pub(crate) target: Option<Target>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) mode: Option<Mode>,
    #[serde(default, deserialize_with = "unique")]
    pub(crate) ports: BTreeMap<PortKey, Mode>,
}

/// Whom a policy is for: exactly one field is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping such as {mesh: true}, {service: web} or {labels: {app: web}}"
)]
pub(crate) struct Target {
    #[serde(default, deserialize_with = "given")]
    pub(crate) mesh: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) service: Option<Label>,
    #[serde(default, deserialize_with = "given_unique")]
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

/// One rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping such as {peers: [{namespace: shop}], ports: [80]}"
)]
pub(crate) struct Rule {
    #[serde(default, deserialize_with = "given")]
    pub(crate) peers: Option<Vec<Peer>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) ports: Option<Vec<PortTerm>>,
}

/// A peer: all that is given must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping such as {namespace: shop} or {cidr: 10.0.0.0/8}"
)]
pub(crate) struct Peer {
    #[serde(default, deserialize_with = "given")]
    pub(crate) identity: Option<SpiffeId>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) namespace: Option<Label>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) service_account: Option<Name>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) service: Option<ServiceRef>,
    #[serde(default, deserialize_with = "given_unique")]
    pub(crate) labels: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) cidr: Option<Cidr>,
}
