//! The stream's state machine against a client that does what the protocol says: whatever
//! happens, the client ends up with exactly what it asked for, nothing that it holds is sent to
//! it again, and a change of the mesh takes effect for all types at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_control::registry::{Directory, Interest, ResourceType, StreamId};
use mesh_control::xds::session::Session;
use mesh_core::identity::Identity;
use mesh_core::model::{Mesh, Workload};
use mesh_core::policy::{Action, AuthorizationPolicy, Direction, Target};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// The mesh is now: for each pod and policy whether it is there, and a byte that may differ.
    Mesh(Vec<Option<u8>>, Vec<Option<u8>>),
    Subscribe(ResourceType, Vec<usize>),
    Unsubscribe(ResourceType, Vec<usize>),
    Wildcard(ResourceType, bool),
    /// A new stream, which begins with this type; the other follows when it is asked for.
    Reconnect(ResourceType),
}

/// Pods, and policies as many.
const COUNT: usize = 4;

fn name(kind: ResourceType, n: usize) -> String {
    match kind {
        ResourceType::Address => format!("c//v1/Pod/ns/p{n}"),
        ResourceType::Policy => format!("authorization/ns/a{n}"),
        ResourceType::Istio => format!("ns/a{n}"),
    }
}

fn identity() -> Identity {
    Identity::new("td".parse().unwrap(), "ns", "sa").unwrap()
}

fn directory(pods: &[Option<u8>], policies: &[Option<u8>]) -> Directory {
    let mut mesh = Mesh::default();
    for (n, mark) in pods.iter().enumerate() {
        let Some(mark) = mark else { continue };
        let uid = name(ResourceType::Address, n);
        mesh.insert_workload(Workload {
            node: format!("node-{mark}"),
            ..Workload::new(uid, format!("p{n}"), identity())
        });
    }
    for (n, mark) in policies.iter().enumerate() {
        let Some(mark) = mark else { continue };
        mesh.insert_authorization(AuthorizationPolicy {
            key: format!("ns/a{n}").into(),
            target: Target::Namespace,
            direction: Direction::Inbound,
            action: [Action::Allow, Action::Deny][usize::from(*mark)],
            rules: vec![],
        });
    }
    Directory::new(mesh)
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop::sample::select(ResourceType::ALL.to_vec());
    let some = || prop::collection::vec(0..COUNT, 1..3);
    let state = || prop::collection::vec(prop::option::of(0u8..2), COUNT);
    prop_oneof![
        3 => (state(), state()).prop_map(|(pods, policies)| Step::Mesh(pods, policies)),
        2 => (kind(), some()).prop_map(|(kind, some)| Step::Subscribe(kind, some)),
        1 => (kind(), some()).prop_map(|(kind, some)| Step::Unsubscribe(kind, some)),
        1 => (kind(), any::<bool>()).prop_map(|(kind, on)| Step::Wildcard(kind, on)),
        1 => kind().prop_map(Step::Reconnect),
    ]
}

/// What a client by the book wants and holds of one type.
#[derive(Default)]
struct Half {
    /// Whether this stream knows of it.
    begun: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    held: BTreeMap<String, String>,
}

impl Half {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// What it wants, and must therefore hold.
    fn expected(&self, kind: ResourceType, now: &Directory) -> BTreeMap<String, String> {
        now.resources(kind)
            .filter(|r| self.wants(&r.name))
            .map(|r| (r.name.to_string(), r.version.to_string()))
            .collect()
    }

    fn take(&mut self, response: &DeltaDiscoveryResponse, again: &[String]) {
        for resource in &response.resources {
            let name = &resource.name;
            assert!(self.wants(name), "{name} was not asked for");
            let old = self.held.insert(name.clone(), resource.version.clone());
            let repeated = old.as_ref() == Some(&resource.version);
            assert!(!repeated || again.contains(name), "{name} again");
        }
        for name in &response.removed_resources {
            self.held.remove(name);
        }
    }
}

/// Both halves, and the stream's other end.
struct Client {
    halves: BTreeMap<ResourceType, Half>,
    stream: Stream,
}

/// A stream in the interest index, with the state that it is told of.
struct Stream {
    session: Session,
    interest: Interest,
    id: StreamId,
    now: Directory,
}

impl Stream {
    fn new(node: &str, now: Directory) -> Self {
        let mut interest = Interest::default();
        Self {
            session: Session::new(node),
            id: interest.join(),
            interest,
            now,
        }
    }

    fn request(&mut self, request: &DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> {
        let answer = self.session.request(request, &self.now).unwrap();
        self.note_interest();
        answer
    }

    /// The mesh goes over to another state; only what the index finds is told.
    fn change(&mut self, wanted: &Directory) -> Vec<DeltaDiscoveryResponse> {
        let changed = self.now.apply(self.now.changes_to(wanted));
        assert_eq!(self.now.version(), wanted.version());
        self.interest.note(&changed, Instant::now());
        let pending = self.interest.take(self.id);
        let told = self.session.changed(&pending, &self.now);
        self.note_interest();
        told
    }

    fn note_interest(&mut self) {
        if let Some(topics) = self.session.new_topics() {
            self.interest.set_topics(self.id, topics);
        }
    }

    fn reconnect(&mut self, node: &str) {
        self.interest.leave(self.id);
        self.id = self.interest.join();
        self.session = Session::new(node);
    }
}

impl Client {
    fn new(now: Directory) -> Self {
        Self {
            halves: ResourceType::ALL.map(|k| (k, Half::default())).into(),
            stream: Stream::new("node-0", now),
        }
    }

    fn half(&mut self, kind: ResourceType) -> &mut Half {
        self.halves.get_mut(&kind).unwrap()
    }

    /// Takes the responses to one request or change, `again` being the names whose repetition
    /// was asked for: one batch, the last of it without `more`, or none.
    fn take(&mut self, batch: &[DeltaDiscoveryResponse], again: &[String]) {
        for (index, response) in batch.iter().enumerate() {
            assert_eq!(response.more, index + 1 < batch.len());
            assert_eq!(response.system_version_info, *self.stream.now.version());
            let kind = ResourceType::of_url(&response.type_url).unwrap();
            let half = self.half(kind);
            assert!(half.begun, "{kind:?} was not asked for");
            half.take(response, again);
        }
    }

    /// Sends a request: the first one of its type says what is held.
    fn ask(&mut self, kind: ResourceType, on: Vec<String>, off: Vec<String>) {
        let half = self.half(kind);
        let first = !std::mem::replace(&mut half.begun, true);
        let mut asked = request(kind, on, off);
        if first {
            let wildcard = half.wildcard.then(|| "*".to_owned());
            let names = half.names.iter().cloned();
            asked.resource_names_subscribe = names.chain(wildcard).collect();
            asked.initial_resource_versions = half.held.clone().into_iter().collect();
            // Without names it is a wildcard.
            half.wildcard |= half.names.is_empty();
        }
        half.held
            .retain(|name, _| half.wildcard || half.names.contains(name));
        let answer = self.stream.request(&asked);
        let again = match first {
            true => Vec::new(),
            false => asked.resource_names_subscribe.clone(),
        };
        let others = answer.iter().filter(|r| r.type_url != kind.url());
        assert_eq!(others.count(), 0, "an answer is of the type that was asked");
        let waits = first || !asked.resource_names_subscribe.is_empty();
        assert!(!waits || !answer.is_empty(), "no answer to {asked:?}");
        self.take(&answer, &again);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Mesh(pods, policies) => {
                let batch = self.stream.change(&directory(&pods, &policies));
                self.take(&batch, &[]);
            }
            Step::Subscribe(kind, some) => {
                let names: Vec<_> = some.into_iter().map(|n| name(kind, n)).collect();
                self.half(kind).names.extend(names.iter().cloned());
                self.ask(kind, names, vec![]);
            }
            Step::Unsubscribe(kind, some) => {
                let names: Vec<_> = some.into_iter().map(|n| name(kind, n)).collect();
                self.half(kind).names.retain(|name| !names.contains(name));
                if self.half(kind).begun {
                    self.ask(kind, vec![], names);
                }
            }
            Step::Wildcard(kind, true) => {
                self.half(kind).wildcard = true;
                self.ask(kind, vec!["*".to_owned()], vec![]);
            }
            Step::Wildcard(kind, false) => {
                self.half(kind).wildcard = false;
                if self.half(kind).begun {
                    self.ask(kind, vec![], vec!["*".to_owned()]);
                }
            }
            Step::Reconnect(kind) => {
                self.stream.reconnect("node-0");
                self.halves.values_mut().for_each(|half| half.begun = false);
                self.ask(kind, vec![], vec![]);
            }
        }
    }
}

fn request(
    kind: ResourceType,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..Default::default()
    }
}

proptest! {
    #[test]
    fn the_client_always_holds_what_it_asked_for(steps in prop::collection::vec(step(), 1..25)) {
        let some = [Some(0), Some(0), None, None];
        let mut client = Client::new(directory(&some, &some));
        for step in steps {
            client.step(step);
            for (kind, half) in &client.halves {
                if half.begun {
                    prop_assert_eq!(&half.held, &half.expected(*kind, &client.stream.now));
                }
            }
        }
    }
}

/// Everything, in pieces that clients take; the last one ends the batch.
fn assert_batch(responses: &[DeltaDiscoveryResponse], expected: usize) {
    let sent: usize = responses.iter().map(|r| r.resources.len()).sum();
    assert_eq!(sent, expected);
    for (index, response) in responses.iter().enumerate() {
        assert!(prost::Message::encoded_len(response) < 4 * 1024 * 1024);
        assert_eq!(response.more, index + 1 < responses.len());
    }
    let nonces: BTreeSet<_> = responses.iter().map(|r| &r.nonce).collect();
    assert_eq!(nonces.len(), responses.len());
}

#[test]
fn large_states_are_cut_into_one_batch_of_responses() {
    const PODS: usize = 20_000;
    let mut mesh = Mesh::default();
    for n in 0..PODS {
        let uid = format!("Kubernetes//v1/Pod/namespace/{n}-{}", "x".repeat(100));
        mesh.insert_workload(Workload {
            node: "node".to_owned(),
            ..Workload::new(uid, format!("{n}"), identity())
        });
    }
    let mut stream = Stream::new("node", Directory::new(Mesh::default()));
    let kinds = [ResourceType::Address, ResourceType::Policy];
    for kind in kinds {
        let first = request(kind, vec!["*".to_owned()], vec![]);
        assert_batch(&stream.request(&first), 0);
    }
    let policies = directory(&[], &[Some(0), Some(1)]);
    for policy in policies.mesh().authorizations() {
        mesh.insert_authorization((**policy).clone());
    }
    let change = stream.change(&Directory::new(mesh));
    assert!(change.len() > 2);
    assert_batch(&change, PODS + 2);
    let types: BTreeSet<_> = change.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(types, kinds.map(ResourceType::url).into());
}

#[test]
fn the_version_of_the_whole_says_what_is_in_it() {
    let pod = |mark| directory(&[Some(mark)], &[]);
    assert_eq!(pod(0).version(), pod(0).version());
    assert_ne!(pod(0).version(), pod(1).version());
    let policy = |mark| directory(&[], &[Some(mark)]);
    assert_ne!(policy(0).version(), policy(1).version());
    assert_ne!(
        policy(0).version(),
        Directory::new(Mesh::default()).version()
    );
}
