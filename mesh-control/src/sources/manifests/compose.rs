//! From checked objects to the model.

mod endpoints;
mod policy;
mod probes;
pub(super) mod revocation;
mod traffic;

use std::collections::BTreeMap;

use mesh_core::budget::{self, Fields};
use mesh_core::identity::{Identity, TrustDomain};
use mesh_core::model::{Health, Locality, Mesh, Service, ServiceKey, Workload};
use mesh_core::sharing::shared_identities;
use mesh_core::traffic::Traffic;

use super::check::{DEFAULT_ACCOUNT, ended, namespace_of, pod_addresses, service_addresses};
use super::document::{Found, Placed};
use super::schema::{self, Pod, ServicePort, TargetPort, is_tcp};
use super::{Mistake, REGION_LABEL, ZONE_LABEL, membership};
use crate::registry::{service_key, workload_uid};
use endpoints::Endpoints;
pub(super) use policy::scope;

/// Makes the model, and warns of what is allowed but likely not meant. What can't be put into it is
/// left out, and is among the mistakes.
pub(super) fn compose(found: &mut Found, trust_domain: &TrustDomain) -> (Mesh, Vec<Mistake>) {
    let mut mesh = Mesh::default();
    let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
    let surroundings = Surroundings::new(found, trust_domain);
    let budgets = policy::budgets(found);
    for pod in found.pods.iter().filter(|pod| placed(&pod.object)) {
        match workload(pod, &surroundings) {
            Ok(mut workload) => {
                workload.budget = budget::resolve(&budgets, &workload);
                mesh.insert_workload(workload);
            }
            Err(error) => {
                let path = ["metadata".into(), "name".into()];
                mistakes.push(pod.place.mistake(&path, error.to_string()));
            }
        }
    }
    for Placed { object, place } in &found.services {
        if object.external() {
            let what = "ExternalName is skipped: it has neither addresses nor pods";
            warnings.push(place.mistake(&["spec".into(), "type".into()], what));
            continue;
        }
        mesh.insert_service(service(object, surroundings.traffic(object)));
    }
    found.warnings.append(&mut warnings);
    mistakes.extend(policy::insert(found, &mut mesh, trust_domain));
    unresolved_ports(found, &mesh);
    shared(found, &mesh);
    (mesh, mistakes)
}

/// What a pod or service gets from objects around it.
struct Surroundings<'a> {
    trust_domain: &'a TrustDomain,
    /// Labels by namespace.
    namespaces: BTreeMap<&'a str, &'a BTreeMap<String, String>>,
    /// By node.
    localities: BTreeMap<String, Locality>,
    /// By namespace.
    services: BTreeMap<&'a str, Vec<Endpoints<'a>>>,
    /// By namespace and service.
    traffics: BTreeMap<(String, String), Traffic>,
}

impl<'a> Surroundings<'a> {
    fn new(found: &'a Found, trust_domain: &'a TrustDomain) -> Self {
        let namespaces = found.namespaces.iter().map(|n| &n.object.metadata);
        let nodes = found.nodes.iter().map(|n| &n.object.metadata);
        let policies = found.service_policies.iter().map(|p| &p.object);
        Self {
            trust_domain,
            namespaces: namespaces
                .map(|metadata| (metadata.name.0.as_str(), &metadata.labels))
                .collect(),
            localities: nodes
                .map(|metadata| {
                    let label = |key| metadata.labels.get(key).cloned().unwrap_or_default();
                    let locality = Locality {
                        region: label(REGION_LABEL),
                        zone: label(ZONE_LABEL),
                    };
                    (metadata.name.0.clone(), locality)
                })
                .collect(),
            services: endpoints::by_namespace(found),
            traffics: policies
                .map(|policy| {
                    let service = policy.spec.service.0.clone();
                    let traffic = traffic::traffic(&policy.spec);
                    ((policy.namespace().to_owned(), service), traffic)
                })
                .collect(),
        }
    }

    fn traffic(&self, service: &schema::Service) -> Traffic {
        let metadata = &service.metadata;
        let key = (namespace_of(metadata).to_owned(), metadata.name.0.clone());
        self.traffics.get(&key).cloned().unwrap_or_default()
    }
}

/// Bound to a node and not over. Pods in the host's network namespace have no namespace of
/// their own that could be captured: the mesh takes no notice of them.
fn placed(pod: &Pod) -> bool {
    pod.spec.node_name.is_some() && !ended(pod) && !pod.spec.host_network
}

fn workload(
    pod: &Placed<Pod>,
    surroundings: &Surroundings<'_>,
) -> Result<Workload, mesh_core::identity::IdentityError> {
    let Pod { metadata, spec, .. } = &pod.object;
    let namespace = namespace_of(metadata);
    let account = spec
        .service_account_name
        .as_ref()
        .map_or(DEFAULT_ACCOUNT, |a| &a.0);
    let node = spec.node_name.as_ref().map_or("", |name| &name.0);
    let services = surroundings.services.get(namespace).into_iter().flatten();
    let services =
        services.filter_map(|service| Some((service.key.clone(), service.ports(&pod.object)?)));
    let around = surroundings.namespaces.get(namespace).copied();
    Ok(Workload {
        uid: workload_uid(namespace, &metadata.name.0).into(),
        name: metadata.name.0.clone(),
        pod_uid: uid(metadata),
        identity: Identity::new(surroundings.trust_domain.clone(), namespace, account)?,
        locality: surroundings
            .localities
            .get(node)
            .cloned()
            .unwrap_or_default(),
        node: node.to_owned(),
        addresses: pod_addresses(&pod.object)
            .into_iter()
            .map(|(a, _)| a)
            .collect(),
        enrolment: membership::enrolment_of(&metadata.labels, around),
        tunnel_port: membership::tunnel_port_of(&metadata.labels, around),
        foreign_processes: membership::foreign_processes_of(&metadata.labels, around),
        shares_processes: spec.share_process_namespace,
        labels: metadata.labels.clone(),
        health: Health::Healthy,
        services: services.collect(),
        probe_ports: probes::ports(&pod.object),
        budget: Fields::default(),
    })
}

/// What kubelet calls a pod: the UID, but for a static pod, whose object in the API has another.
fn uid(metadata: &schema::Metadata<schema::Name>) -> String {
    let annotations = metadata.annotations.as_ref();
    let mirrored = annotations.and_then(|annotations| annotations.mirror.clone());
    mirrored
        .or_else(|| metadata.uid.clone())
        .unwrap_or_default()
}

fn service(object: &schema::Service, traffic: Traffic) -> Service {
    Service {
        key: key_of(object),
        name: object.metadata.name.0.clone(),
        namespace: namespace_of(&object.metadata).to_owned(),
        addresses: service_addresses(object)
            .into_iter()
            .map(|(a, _)| a)
            .collect(),
        ports: tcp_ports(object).map(|port| port.port.0).collect(),
        traffic,
    }
}

fn key_of(service: &schema::Service) -> ServiceKey {
    let metadata = &service.metadata;
    service_key(namespace_of(metadata), &metadata.name.0).into()
}

fn tcp_ports(service: &schema::Service) -> impl Iterator<Item = &ServicePort> {
    service
        .spec
        .ports
        .iter()
        .filter(|port| is_tcp(port.protocol.as_ref()))
}

/// A named target port that no selected pod has leads nowhere.
fn unresolved_ports(found: &mut Found, mesh: &Mesh) {
    for Placed { object, place } in &found.services {
        let key = key_of(object);
        let members = mesh.members(&key);
        let members = members.filter_map(|w| w.services.get(&key));
        // One without any port takes no new connections, or has not what is asked for.
        let members: Vec<_> = members.filter(|ports| !ports.is_empty()).collect();
        let asked = !members.is_empty() || takes_new(found, object);
        for (index, port) in object.spec.ports.iter().enumerate() {
            let Some(TargetPort::Name(name)) = &port.target_port else {
                continue;
            };
            let resolved = members.iter().any(|ports| ports.contains_key(&port.port.0));
            if asked && !resolved {
                let path = [
                    "spec".into(),
                    "ports".into(),
                    index.into(),
                    "targetPort".into(),
                ];
                let what = format!("no pod of the service has a container port named {name:?}");
                found.warnings.push(place.mistake(&path, what));
            }
        }
    }
}

/// Whether any pod that the service selects is there to stay. Who is ready of a service that has
/// slices is said there.
fn takes_new(found: &Found, service: &schema::Service) -> bool {
    let (namespace, name) = (namespace_of(&service.metadata), &service.metadata.name.0);
    let mut slices = found.slices.iter().map(|slice| &slice.object);
    let sliced = slices
        .any(|slice| slice.service() == Some(name) && namespace_of(&slice.metadata) == namespace);
    let mut pods = found.pods.iter().map(|pod| &pod.object);
    !sliced
        && pods.any(|pod| {
            namespace_of(&pod.metadata) == namespace
                && placed(pod)
                && pod.metadata.deletion_timestamp.is_none()
                && endpoints::selects(service, pod)
        })
}

/// Different services that run as one identity can't be told apart by policy.
fn shared(found: &mut Found, mesh: &Mesh) {
    for (identity, groups) in shared_identities(mesh) {
        let names: Vec<_> = groups.iter().flatten().map(ToString::to_string).collect();
        let first = found
            .services
            .iter()
            .find(|s| key_of(&s.object).as_ref() == names[0]);
        let Some(Placed { place, .. }) = first else {
            continue;
        };
        let what = format!(
            "services {} run as one identity, {identity}: give each its own service account",
            names.join(", ")
        );
        let warning = place.mistake(&["metadata".into(), "name".into()], what);
        found.warnings.push(warning);
    }
}
