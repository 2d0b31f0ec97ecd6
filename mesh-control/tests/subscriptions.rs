//! What a node is sent of the mesh, against what it must hold by the rules: whatever happens to
//! the mesh and to the stream, nothing less, nothing more, and nothing of it late.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_api::OWN_NAME;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_control::registry::{
    Directory, Interest, ResourceType, StreamId, service_key, workload_uid,
};
use mesh_control::xds::session::Session;
use mesh_core::identity::Identity;
use mesh_core::model::{Mesh, Service, Workload};
use mesh_core::policy::{
    Action, AuthenticationPolicy, AuthorizationPolicy, Direction, PeerTerm, PortTerm, Protocol,
    Rule, Target,
};
use proptest::prelude::*;

const NODE: &str = "node-0";
const KINDS: [ResourceType; 2] = [ResourceType::Address, ResourceType::Policy];
const NAMESPACES: [&str; 3] = ["shop", "data", "other"];

/// A pod: its node, its last octet, and whether it is behind its namespace's service.
type Pod = (usize, u8, bool);

/// The mesh: up to two pods in each namespace, a service in each, and policies by number.
#[derive(Clone, Debug)]
struct State {
    pods: Vec<Option<Pod>>,
    services: Vec<Option<u8>>,
    policies: BTreeSet<usize>,
}

fn state() -> impl Strategy<Value = State> {
    let pod = (0..2usize, 1..5u8, any::<bool>());
    (
        prop::collection::vec(prop::option::of(pod), 2 * NAMESPACES.len()),
        prop::collection::vec(prop::option::of(1..3u8), NAMESPACES.len()),
        prop::collection::btree_set(0..policies().len(), 0..4),
    )
        .prop_map(|(pods, services, policies)| State {
            pods,
            services,
            policies,
        })
}

fn rule(peer: PeerTerm, protocol: Protocol, port: Option<u16>) -> Rule {
    Rule {
        peers: (peer != PeerTerm::default())
            .then_some(peer)
            .into_iter()
            .collect(),
        ports: [PortTerm { port, protocol }].into(),
    }
}

fn outbound(key: &str, action: Action, rule: Rule) -> AuthorizationPolicy {
    AuthorizationPolicy {
        key: key.into(),
        target: Target::Namespace,
        direction: Direction::Outbound,
        action,
        rules: vec![rule],
    }
}

/// Names of a part of the mesh.
type Needed = fn(&Mesh) -> BTreeSet<String>;

/// With each policy the part of the mesh that is needed where it selects a pod.
fn policies() -> Vec<(AuthorizationPolicy, Needed)> {
    let of_data = || PeerTerm {
        namespace: Some("data".into()),
        ..PeerTerm::default()
    };
    let block = || PeerTerm {
        cidr: Some("10.9.0.0/16".parse().unwrap()),
        ..PeerTerm::default()
    };
    let any = PeerTerm::default;
    vec![
        (
            outbound(
                "shop/allow",
                Action::Allow,
                rule(any(), Protocol::Tcp, None),
            ),
            |_| BTreeSet::new(),
        ),
        (
            outbound(
                "shop/no-data",
                Action::Deny,
                rule(of_data(), Protocol::Tcp, None),
            ),
            |mesh| {
                let workloads = mesh
                    .workloads()
                    .filter(|w| w.identity.namespace() == "data");
                let services = mesh.services().filter(|s| s.namespace == "data");
                let workloads = workloads.map(|w| w.uid.to_string());
                workloads
                    .chain(services.map(|s| s.key.to_string()))
                    .collect()
            },
        ),
        (
            // Virtual addresses are in this block.
            outbound(
                "shop/no-block",
                Action::Deny,
                rule(block(), Protocol::Tcp, Some(80)),
            ),
            |mesh| services(mesh, |_| true),
        ),
        (
            outbound(
                "shop/no-443",
                Action::Deny,
                rule(any(), Protocol::Tcp, Some(443)),
            ),
            |mesh| services(mesh, |service| service.ports.contains(&443)),
        ),
        (
            outbound(
                "other/no-data",
                Action::Deny,
                rule(of_data(), Protocol::Tcp, None),
            ),
            all_of_data,
        ),
        (
            outbound(
                "shop/udp",
                Action::Allow,
                rule(block(), Protocol::Udp, None),
            ),
            |_| BTreeSet::new(),
        ),
        (
            outbound(
                "shop/no-udp-8080",
                Action::Deny,
                rule(any(), Protocol::Udp, Some(8080)),
            ),
            led_to_8080,
        ),
    ]
}

fn all_of_data(mesh: &Mesh) -> BTreeSet<String> {
    let workloads = mesh.workloads();
    let workloads = workloads.filter(|w| w.identity.namespace() == "data");
    let services = mesh.services().filter(|s| s.namespace == "data");
    let workloads = workloads.map(|w| w.uid.to_string());
    workloads
        .chain(services.map(|s| s.key.to_string()))
        .collect()
}

/// The services that lead somewhere to this port, with their workloads: where any UDP is allowed.
fn led_to_8080(mesh: &Mesh) -> BTreeSet<String> {
    if mesh
        .authorizations()
        .all(|policy| &*policy.key != "shop/udp")
    {
        return BTreeSet::new();
    }
    let translations = mesh.workloads().flat_map(|w| w.translations());
    let led = translations.filter(|(_, port)| *port == 8080);
    let keys: BTreeSet<_> = led.map(|(key, _)| key.clone()).collect();
    let members = keys.iter().flat_map(|key| mesh.members(key));
    let services = keys.iter().filter_map(|key| mesh.service(key));
    let members = members.map(|w| w.uid.to_string());
    members.chain(services.map(|s| s.key.to_string())).collect()
}

/// The services that are meant, with their workloads.
fn services(mesh: &Mesh, meant: impl Fn(&Service) -> bool) -> BTreeSet<String> {
    let services = mesh.services().filter(|service| meant(service));
    let with_members = services.flat_map(|service| {
        let members = mesh.members(&service.key).map(|w| w.uid.to_string());
        members.chain([service.key.to_string()])
    });
    with_members.collect()
}

fn mesh(state: &State) -> Mesh {
    let mut mesh = Mesh::default();
    for (n, pod) in state.pods.iter().enumerate() {
        let Some((node, octet, member)) = *pod else {
            continue;
        };
        let namespace = NAMESPACES[n / 2];
        let identity = Identity::new("td".parse().unwrap(), namespace, "sa").unwrap();
        let key = service_key(namespace, "web");
        let name = format!("p{n}");
        let target = if octet == 1 { 8080 } else { 80 };
        mesh.insert_workload(Workload {
            node: format!("node-{node}"),
            // No two pods have the same at one time.
            addresses: vec![[10, 0, u8::try_from(n).unwrap(), octet].into()],
            services: BTreeMap::from([(key.as_str().into(), BTreeMap::from([(80, target)]))])
                .into_iter()
                .filter(|_| member)
                .collect(),
            ..Workload::new(workload_uid(namespace, &name), name, identity)
        });
    }
    for (n, octet) in state.services.iter().enumerate() {
        let Some(octet) = octet else { continue };
        let namespace = NAMESPACES[n];
        mesh.insert_service(Service {
            key: service_key(namespace, "web").into(),
            name: "web".to_owned(),
            namespace: namespace.to_owned(),
            addresses: vec![[10, 9, u8::try_from(n).unwrap(), *octet].into()],
            ports: [80, 442 + u16::from(*octet)].into(),
            traffic: Default::default(),
        });
    }
    for n in &state.policies {
        mesh.insert_authorization(policies()[*n].0.clone());
    }
    mesh.insert_authentication(AuthenticationPolicy {
        key: "data/scope".into(),
        target: Target::Namespace,
        mode: None,
        ports: BTreeMap::new(),
    });
    mesh
}

/// What the node must hold, worked out from the whole.
fn expected(mesh: &Mesh, state: &State, names: &BTreeSet<String>) -> [BTreeSet<String>; 2] {
    let own: Vec<_> = mesh.workloads().filter(|w| w.node == NODE).collect();
    let mut addresses: BTreeSet<String> = own.iter().map(|w| w.uid.to_string()).collect();
    let mut with_service = |key: &str| {
        addresses.extend(mesh.service(key).map(|s| s.key.to_string()));
        addresses.extend(mesh.members(key).map(|w| w.uid.to_string()));
    };
    for key in own.iter().flat_map(|w| w.services.keys()) {
        with_service(key);
    }
    for name in names {
        let address = name.strip_prefix('/').and_then(|ip| ip.parse().ok());
        if let Some(service) = address.and_then(|address| mesh.service_at(address)) {
            with_service(&service.key);
        }
    }
    for name in names {
        let address = name.strip_prefix('/').and_then(|ip| ip.parse().ok());
        let workload = address.and_then(|address| mesh.workload_at(address));
        addresses.extend(workload.map(|w| w.uid.to_string()));
    }
    let mut held = BTreeSet::new();
    for workload in &own {
        let (authorizations, authentications) = mesh.policies_for(workload);
        held.extend(
            authorizations
                .iter()
                .map(|p| format!("authorization/{}", p.key)),
        );
        held.extend(
            authentications
                .iter()
                .map(|p| format!("authentication/{}", p.key)),
        );
    }
    for n in &state.policies {
        let (policy, needed) = &policies()[*n];
        if held.contains(&format!("authorization/{}", policy.key)) {
            addresses.extend(needed(mesh));
        }
    }
    [addresses, held]
}

#[derive(Clone, Debug)]
enum Step {
    Mesh(State),
    Ask(BTreeSet<String>),
    Forget(BTreeSet<String>),
    Reconnect,
}

/// Addresses of pods and of services, some of which are somebody's.
fn names() -> impl Strategy<Value = BTreeSet<String>> {
    let pod = (0..6u8, 1..5u8).prop_map(|(n, octet)| format!("/10.0.{n}.{octet}"));
    let service = (0..3u8, 1..3u8).prop_map(|(n, octet)| format!("/10.9.{n}.{octet}"));
    prop::collection::btree_set(prop_oneof![pod, service], 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => state().prop_map(Step::Mesh),
        3 => names().prop_map(Step::Ask),
        1 => names().prop_map(Step::Forget),
        1 => Just(Step::Reconnect),
    ]
}

/// A node, and its stream's other end.
struct Node {
    session: Session,
    interest: Interest,
    id: StreamId,
    now: Directory,
    names: BTreeSet<String>,
    /// Name → version, by type.
    held: BTreeMap<ResourceType, BTreeMap<String, String>>,
}

impl Node {
    fn new(now: Directory) -> Self {
        let mut interest = Interest::default();
        let mut node = Self {
            session: Session::new(NODE),
            id: interest.join(),
            interest,
            now,
            names: BTreeSet::new(),
            held: BTreeMap::new(),
        };
        node.connect();
        node
    }

    fn connect(&mut self) {
        for kind in KINDS {
            let held = self.held.entry(kind).or_default().clone();
            let names = self.names.iter().cloned();
            let names = names.filter(|_| kind == ResourceType::Address);
            let request = DeltaDiscoveryRequest {
                initial_resource_versions: held.into_iter().collect(),
                resource_names_subscribe: names.chain([OWN_NAME.to_owned()]).collect(),
                ..request(kind)
            };
            self.send(&request);
        }
    }

    fn send(&mut self, request: &DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> {
        let answer = self.session.request(request, &self.now).unwrap();
        self.note_interest();
        self.take(&answer);
        answer
    }

    fn note_interest(&mut self) {
        if let Some(topics) = self.session.new_topics() {
            self.interest.set_topics(self.id, topics);
        }
    }

    fn take(&mut self, responses: &[DeltaDiscoveryResponse]) {
        for (index, response) in responses.iter().enumerate() {
            assert_eq!(response.more, index + 1 < responses.len());
            let kind = ResourceType::of_url(&response.type_url).unwrap();
            let held = self.held.entry(kind).or_default();
            for name in &response.removed_resources {
                held.remove(name);
            }
            for resource in &response.resources {
                held.insert(resource.name.clone(), resource.version.clone());
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Mesh(state) => {
                let wanted = Directory::new(mesh(state));
                let changed = self.now.apply(self.now.changes_to(&wanted));
                self.interest.note(&changed, Instant::now());
                let pending = self.interest.take(self.id);
                let told = self.session.changed(&pending, &self.now);
                self.note_interest();
                self.take(&told);
            }
            Step::Ask(names) => {
                self.names.extend(names.iter().cloned());
                let answer = self.send(&DeltaDiscoveryRequest {
                    resource_names_subscribe: names.iter().cloned().collect(),
                    ..request(ResourceType::Address)
                });
                // Every name is spoken of.
                let aliases = answer.iter().flat_map(|r| &r.resources);
                let aliases = aliases.flat_map(|r| &r.aliases);
                let spoken: BTreeSet<&String> = aliases
                    .chain(answer.iter().flat_map(|r| &r.removed_resources))
                    .collect();
                assert!(names.iter().all(|name| spoken.contains(name)), "{answer:?}");
            }
            Step::Forget(names) => {
                self.names.retain(|name| !names.contains(name));
                self.send(&DeltaDiscoveryRequest {
                    resource_names_unsubscribe: names.iter().cloned().collect(),
                    ..request(ResourceType::Address)
                });
            }
            Step::Reconnect => {
                self.interest.leave(self.id);
                self.id = self.interest.join();
                self.session = Session::new(NODE);
                self.connect();
            }
        }
    }
}

fn request(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        ..Default::default()
    }
}

proptest! {
    #[test]
    fn a_node_holds_its_part_of_the_mesh_and_no_more(
        first in state(),
        steps in prop::collection::vec(step(), 1..20),
    ) {
        let mut state = first;
        let mut node = Node::new(Directory::new(mesh(&state)));
        for step in steps {
            if let Step::Mesh(next) = &step {
                state = next.clone();
            }
            node.step(&step);
            let wanted = expected(&mesh(&state), &state, &node.names);
            for (kind, wanted) in KINDS.into_iter().zip(wanted) {
                let held = &node.held[&kind];
                let names: BTreeSet<String> = held.keys().cloned().collect();
                prop_assert_eq!(&names, &wanted, "after {:?}", step);
                for (name, version) in held {
                    let resource = node.now.resource(kind, name).unwrap();
                    prop_assert_eq!(version.as_str(), &*resource.version);
                }
            }
        }
    }
}
