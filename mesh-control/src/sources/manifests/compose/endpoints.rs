//! Who serves a service. Where EndpointSlices say it they count, for they know what a selector does
//! not: which pods are ready. A service without slices is served by the pods that it selects.
//!
//! A pod that is not ready, or on its way out, belongs to its services as before: what policy says of
//! the service's pods holds for the connections that it still has, and for the calls that it makes. It
//! only has no port of them, so nothing new is sent there.

use std::collections::BTreeMap;

use mesh_core::model::ServiceKey;

use super::{key_of, tcp_ports};
use crate::sources::manifests::check::namespace_of;
use crate::sources::manifests::document::Found;
use crate::sources::manifests::schema::{EndpointSlice, Pod, Service, TargetPort, is_tcp};

/// Service port → the pod's port.
type Ports = BTreeMap<u16, u16>;

/// A service and who serves it.
pub(super) struct Endpoints<'a> {
    pub(super) key: ServiceKey,
    service: &'a Service,
    /// By name of the pod; `None` where no slice is about this service.
    sliced: Option<BTreeMap<&'a str, Ports>>,
}

/// The services that can have endpoints.
pub(super) fn by_namespace(found: &Found) -> BTreeMap<&str, Vec<Endpoints<'_>>> {
    let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in found.slices.iter().map(|placed| &placed.object) {
        if let Some(service) = slice.service() {
            let key = (namespace_of(&slice.metadata), service);
            slices.entry(key).or_default().push(slice);
        }
    }
    let mut services: BTreeMap<&str, Vec<Endpoints<'_>>> = BTreeMap::new();
    for service in found.services.iter().map(|placed| &placed.object) {
        if service.external() {
            continue;
        }
        let (namespace, name) = (namespace_of(&service.metadata), &service.metadata.name.0);
        let slices = slices.get(&(namespace, name.as_str()));
        services.entry(namespace).or_default().push(Endpoints {
            key: key_of(service),
            service,
            sliced: slices.map(|slices| sliced(service, slices)),
        });
    }
    services
}

impl Endpoints<'_> {
    /// The ports of a pod of the service's namespace, if it belongs to the service; none while it
    /// takes no new connections.
    pub(super) fn ports(&self, pod: &Pod) -> Option<Ports> {
        let selected = selects(self.service, pod);
        let ports = match &self.sliced {
            Some(pods) => {
                let sliced = pods.get(pod.metadata.name.0.as_str()).cloned();
                sliced.or_else(|| selected.then(Ports::new))
            }
            None => selected.then(|| target_ports(self.service, pod)),
        };
        match pod.metadata.deletion_timestamp {
            None => ports,
            Some(_) => ports.map(|_| Ports::new()),
        }
    }
}

fn sliced<'a>(service: &Service, slices: &[&'a EndpointSlice]) -> BTreeMap<&'a str, Ports> {
    let mut by_pod: BTreeMap<&str, Ports> = BTreeMap::new();
    for slice in slices {
        let numbers = slice_ports(service, slice);
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(pod) = endpoint.pod() else { continue };
            // A pod with addresses of two families is in two slices.
            let ports = by_pod.entry(pod).or_default();
            if endpoint.ready() {
                ports.extend(&numbers);
            }
        }
    }
    by_pod
}

/// A port of a service and that of its endpoints have one name.
fn slice_ports(service: &Service, slice: &EndpointSlice) -> Ports {
    let targets = slice.ports.iter().flatten();
    let targets: BTreeMap<_, _> = targets
        .filter(|port| is_tcp(port.protocol.as_ref()))
        .filter_map(|port| Some((port.name.as_ref().map(|n| &n.0), port.port?.0)))
        .collect();
    tcp_ports(service)
        .filter_map(|port| {
            let target = targets.get(&port.name.as_ref().map(|n| &n.0))?;
            Some((port.port.0, *target))
        })
        .collect()
}

/// A service without a selector selects nothing.
pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = &service.spec.selector;
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| pod.metadata.labels.get(key) == Some(value))
}

fn target_ports(service: &Service, pod: &Pod) -> BTreeMap<u16, u16> {
    tcp_ports(service)
        .filter_map(|port| {
            let target = match &port.target_port {
                None => port.port.0,
                Some(TargetPort::Number(number)) => *number,
                Some(TargetPort::Name(name)) => named_port(pod, name)?,
            };
            Some((port.port.0, target))
        })
        .collect()
}

fn named_port(pod: &Pod, name: &str) -> Option<u16> {
    let ports = pod
        .spec
        .containers
        .iter()
        .flat_map(|container| &container.ports);
    ports
        .filter(|port| is_tcp(port.protocol.as_ref()))
        .find(|port| port.name.as_ref().is_some_and(|n| n.0 == name))
        .map(|port| port.container_port.0)
}
