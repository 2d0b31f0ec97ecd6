//! EndpointSlices: which pods serve a service now, as the cluster's own controller has found out.

use serde::Deserialize;

use super::{Metadata, Name, Port, PortName, Protocol};

/// Label of a slice with the name of its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A part of a service's endpoints.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Metadata<Name>,
    // An API server writes `null` for an empty list.
    #[serde(default)]
    pub(crate) endpoints: Option<Vec<SliceEndpoint>>,
    #[serde(default)]
    pub(crate) ports: Option<Vec<SlicePort>>,
}

impl EndpointSlice {
    /// The service that it is a part of.
    pub(crate) fn service(&self) -> Option<&str> {
        self.metadata.labels.get(SERVICE_LABEL).map(String::as_str)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SliceEndpoint {
    #[serde(default)]
    conditions: Conditions,
    #[serde(default)]
    target_ref: Option<TargetRef>,
}

impl SliceEndpoint {
    /// The pod that it is, by name, in the slice's namespace.
    pub(crate) fn pod(&self) -> Option<&str> {
        let target = self.target_ref.as_ref()?;
        (target.kind == "Pod").then_some(target.name.as_str())
    }

    /// Whether it gets new connections.
    pub(crate) fn ready(&self) -> bool {
        // Kubernetes: an unknown state is to be taken for ready.
        self.conditions.ready.unwrap_or(true)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
    name: String,
}

/// A port of the endpoints; its name is that of the service's port.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SlicePort {
    #[serde(default, deserialize_with = "no_name")]
    pub(crate) name: Option<PortName>,
    #[serde(default)]
    pub(crate) port: Option<Port>,
    #[serde(default)]
    pub(crate) protocol: Option<Protocol>,
}

/// The one port of a service may have no name, which is written as an empty one.
fn no_name<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PortName>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    let name = name.filter(|name| !name.is_empty());
    name.map(|name| super::port_name(&name).map(PortName))
        .transpose()
        .map_err(serde::de::Error::custom)
}
