//! The ports at which kubelet calls a pod.

use std::collections::BTreeSet;

use crate::sources::manifests::check::pod_addresses;
use crate::sources::manifests::schema::probes::Target;
use crate::sources::manifests::schema::{Container, Pod, TargetPort};

/// The pod's own ports that kubelet's probes and hooks go to, of all containers: init containers have
/// some as well where they are sidecars. What names another host is not the pod's, and a name that
/// its container gives no port leads nowhere, for kubelet too.
pub(super) fn ports(pod: &Pod) -> BTreeSet<u16> {
    let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    containers
        .flat_map(|container| ports_of(pod, container))
        .collect()
}

fn ports_of(pod: &Pod, container: &Container) -> BTreeSet<u16> {
    let probes = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
    ];
    let lifecycle = container.lifecycle.as_ref();
    let hooks = lifecycle.map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
    let hooks = hooks.into_iter().flatten().flatten();
    let hooks = hooks.filter_map(|hook| hook.http_get.as_ref());
    let mut ports = BTreeSet::new();
    let mut targets: Vec<&Target> = hooks.collect();
    for probe in probes.into_iter().flatten() {
        targets.extend(probe.http_get.as_ref());
        targets.extend(probe.tcp_socket.as_ref());
        ports.extend(probe.grpc.as_ref().map(|grpc| grpc.port.0));
    }
    let own = targets.into_iter().filter(|target| is_at(pod, target));
    ports.extend(own.filter_map(|target| number(container, &target.port)));
    ports
}

/// Whether a target is at the pod, which it is where it names no host.
fn is_at(pod: &Pod, target: &Target) -> bool {
    let host = target.host.as_deref().filter(|host| !host.is_empty());
    host.is_none_or(|host| {
        let named = host.parse().ok();
        pod_addresses(pod)
            .into_iter()
            .any(|(address, _)| named == Some(address))
    })
}

/// Names are those of the same container, as kubelet resolves them.
fn number(container: &Container, port: &TargetPort) -> Option<u16> {
    match port {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let mut ports = container.ports.iter();
            let named = ports.find(|port| port.name.as_ref().is_some_and(|found| found.0 == *name));
            named.map(|port| port.container_port.0)
        }
    }
}
