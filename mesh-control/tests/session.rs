//! The subscription's state machine against a client that does what the protocol says:
//! whatever happens, the client ends up with exactly what it asked for, and nothing that it
//! holds is sent to it again.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::ADDRESS_TYPE_URL;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_control::registry::Directory;
use mesh_control::xds::session::Session;
use mesh_core::identity::Identity;
use mesh_core::model::{Mesh, Workload};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// The mesh is now: for each pod whether it is there, and a byte that may differ.
    Mesh(Vec<Option<u8>>),
    Subscribe(Vec<usize>),
    Unsubscribe(Vec<usize>),
    Wildcard(bool),
    Reconnect,
}

const PODS: usize = 4;

fn uid(n: usize) -> String {
    format!("c//v1/Pod/ns/p{n}")
}

fn directory(pods: &[Option<u8>]) -> Directory {
    let mut mesh = Mesh::default();
    for (n, mark) in pods.iter().enumerate() {
        let Some(mark) = mark else { continue };
        let identity = Identity::new("td".parse().unwrap(), "ns", "sa").unwrap();
        mesh.insert_workload(Workload {
            node: format!("node-{mark}"),
            ..Workload::new(uid(n), format!("p{n}"), identity)
        });
    }
    Directory::new(mesh)
}

fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(0..PODS, 1..3);
    prop_oneof![
        3 => prop::collection::vec(prop::option::of(0u8..2), PODS).prop_map(Step::Mesh),
        2 => some().prop_map(Step::Subscribe),
        1 => some().prop_map(Step::Unsubscribe),
        1 => any::<bool>().prop_map(Step::Wildcard),
        1 => Just(Step::Reconnect),
    ]
}

/// A client by the book.
#[derive(Default)]
struct Client {
    wildcard: bool,
    names: BTreeSet<String>,
    held: BTreeMap<String, String>,
}

impl Client {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Takes responses; `again` are names whose repetition was asked for.
    fn take(&mut self, responses: &[DeltaDiscoveryResponse], again: &[String]) {
        for response in responses {
            for resource in &response.resources {
                assert!(
                    self.wants(&resource.name),
                    "{} was not asked for",
                    resource.name
                );
                let old = self
                    .held
                    .insert(resource.name.clone(), resource.version.clone());
                let repeated = old.as_ref() == Some(&resource.version);
                assert!(
                    !repeated || again.contains(&resource.name),
                    "{} again",
                    resource.name
                );
            }
            for name in &response.removed_resources {
                self.held.remove(name);
            }
        }
    }

    fn first_request(&self) -> DeltaDiscoveryRequest {
        let mut names: Vec<_> = self.names.iter().cloned().collect();
        if self.wildcard {
            names.push("*".to_owned());
        }
        DeltaDiscoveryRequest {
            initial_resource_versions: self.held.clone().into_iter().collect(),
            ..request(names, vec![])
        }
    }
}

fn request(subscribe: Vec<String>, unsubscribe: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE_URL.to_owned(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..Default::default()
    }
}

proptest! {
    #[test]
    fn the_client_always_holds_what_it_asked_for(steps in prop::collection::vec(step(), 1..25)) {
        let mut now = directory(&[Some(0), Some(0), None, None]);
        let mut client = Client { wildcard: true, ..Default::default() };
        let mut session = Session::default();
        client.take(&session.request(&client.first_request(), &now).unwrap(), &[]);
        for step in steps {
            let mut ask = |client: &mut Client, on: Vec<String>, off: Vec<String>| {
                let again = on.clone();
                let responses = session.request(&request(on, off), &now).unwrap();
                client.held.retain(|name, _| client.wildcard || client.names.contains(name));
                client.take(&responses, &again);
            };
            match step {
                Step::Mesh(pods) => {
                    now = directory(&pods);
                    client.take(&session.changed(&now), &[]);
                }
                Step::Subscribe(pods) => {
                    let names: Vec<_> = pods.into_iter().map(uid).collect();
                    client.names.extend(names.iter().cloned());
                    ask(&mut client, names, vec![]);
                }
                Step::Unsubscribe(pods) => {
                    let names: Vec<_> = pods.into_iter().map(uid).collect();
                    client.names.retain(|name| !names.contains(name));
                    ask(&mut client, vec![], names);
                }
                Step::Wildcard(true) => {
                    client.wildcard = true;
                    ask(&mut client, vec!["*".to_owned()], vec![]);
                }
                Step::Wildcard(false) => {
                    client.wildcard = false;
                    ask(&mut client, vec![], vec!["*".to_owned()]);
                }
                Step::Reconnect if client.wildcard || !client.names.is_empty() => {
                    session = Session::default();
                    let first = client.first_request();
                    client.take(&session.request(&first, &now).unwrap(), &[]);
                }
                Step::Reconnect => {}
            }
            let expected: BTreeMap<_, _> = now
                .resources()
                .filter(|r| client.wants(&r.name))
                .map(|r| (r.name.to_string(), r.version.to_string()))
                .collect();
            prop_assert_eq!(&client.held, &expected);
        }
    }
}

#[test]
fn large_states_are_cut_into_responses_that_clients_take() {
    let mut mesh = Mesh::default();
    for n in 0..20_000 {
        let identity = Identity::new("td".parse().unwrap(), "namespace", "account").unwrap();
        let uid = format!("Kubernetes//v1/Pod/namespace/{n}-{}", "x".repeat(100));
        mesh.insert_workload(Workload {
            node: "node".to_owned(),
            ..Workload::new(uid, format!("{n}"), identity)
        });
    }
    let directory = Directory::new(mesh);
    let responses = Session::default()
        .request(&request(vec!["*".to_owned()], vec![]), &directory)
        .unwrap();
    assert!(responses.len() > 1);
    let sent: usize = responses.iter().map(|r| r.resources.len()).sum();
    assert_eq!(sent, 20_000);
    for response in &responses {
        assert!(prost::Message::encoded_len(response) < 4 * 1024 * 1024);
    }
    let nonces: BTreeSet<_> = responses.iter().map(|r| &r.nonce).collect();
    assert_eq!(nonces.len(), responses.len());
}
