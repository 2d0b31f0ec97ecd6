//! The scenarios in `scenarios/`: the same files in standalone mode and from a cluster, whichever way its
//! events come, make the same mesh, which resolves and decides as each file's expectations say.

#[path = "support/admission.rs"]
mod admission;
#[path = "support/api.rs"]
mod api;
#[path = "support/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::Api;
use cluster::{PATIENCE, settings, trust_domain, until, with_uids};
use mesh_api::admin::{Outcome, Place, Request};
use mesh_control::admin::Admin;
use mesh_control::clocks::Clocks;
use mesh_control::observe::Series;
use mesh_control::registry::Registry;
use mesh_control::sources::kubernetes::Follower;
use mesh_control::sources::manifests::{Mistake, parse};
use mesh_core::model::Resolution;
use mesh_core::policy::Protocol;
use mesh_core::revocation::Revocations;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    workloads: usize,
    #[serde(default)]
    resolved: Vec<Resolved>,
    #[serde(default)]
    decided: Vec<Decided>,
    /// Memory of workers, by pod.
    #[serde(default)]
    budgets: BTreeMap<String, Option<u32>>,
    #[serde(default)]
    revoked: Revoked,
    /// Parts of what the operator is told, in order.
    #[serde(default)]
    told: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolved {
    address: IpAddr,
    port: u16,
    to: Targets,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Targets {
    Unknown(String),
    Known(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decided {
    from: String,
    to: String,
    port: u16,
    outcome: Outcome,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoked {
    #[serde(default)]
    nodes: Vec<String>,
    #[serde(default)]
    serials: usize,
}

/// What a mode has made of a scenario.
struct Made {
    mode: &'static str,
    registry: Arc<Registry>,
    revocations: Revocations,
    told: Vec<Mistake>,
}

fn scenarios() -> Vec<(PathBuf, String, Expected)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| !path.to_str().unwrap().ends_with(".expect.yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    let scenario = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let expected = fs::read_to_string(path.with_extension("expect.yaml")).unwrap();
        let expected = serde_yaml_ng::from_str(&expected);
        let expected = expected.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, text, expected)
    };
    files.into_iter().map(scenario).collect()
}

/// The objects of a file, as they would be sent to an API server.
fn objects(text: &str) -> Vec<Value> {
    let documents = text.split("\n---\n");
    let objects: Vec<Value> = documents.map(admission::from_yaml).collect();
    for object in &objects {
        if object["apiVersion"] == "nodemesh.dev/v1alpha1" {
            assert_eq!(admission::mistakes(object), [""; 0], "{object}");
        }
    }
    objects
}

fn standalone(path: &Path, text: &str) -> Made {
    let loaded = parse(&[(path.to_owned(), text.to_owned())], &trust_domain());
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    Made {
        mode: "standalone",
        registry: Arc::new(Registry::new(with_uids(loaded.mesh))),
        revocations: loaded.revocations,
        told: loaded.warnings,
    }
}

async fn cluster_at_once(text: &str) -> Made {
    let api = Api::start().await;
    for object in objects(text) {
        api.put(object);
    }
    let settings = settings();
    let revocations = settings.revocations.subscribe();
    let start = Follower::start(&api.client(), settings).await;
    let (follower, registry) = start.unwrap();
    let revocations = revocations.borrow().clone();
    Made {
        mode: "a cluster, listed at once",
        registry,
        revocations,
        told: follower.mistakes().to_vec(),
    }
}

/// Last things first, each of them again, and all that came before it twice more.
async fn cluster_disordered(text: &str, version: &str) -> Made {
    let api = Api::start().await;
    let settings = settings();
    let mut revocations = settings.revocations.subscribe();
    let (registry, _following) = cluster::follow_with(&api, settings).await;
    for object in objects(text).into_iter().rev() {
        api.put(object.clone());
        api.put(object);
        api.stutter();
    }
    until(&registry, "the same version", |d| *d.version() == *version).await;
    let all = revocations
        .wait_for(|revoked| !text.contains("kind: Revocation") || !revoked.nodes.is_empty());
    let revocations = tokio::time::timeout(PATIENCE, all)
        .await
        .unwrap()
        .unwrap()
        .clone();
    Made {
        mode: "a cluster, in disorder",
        registry,
        revocations,
        told: Vec::new(),
    }
}

fn check(path: &Path, expected: &Expected, made: Made) {
    let Made {
        mode,
        registry,
        revocations,
        told,
    } = made;
    let at = format!("{} in {mode}", path.display());
    let directory = registry.current();
    let mesh = directory.mesh();
    assert_eq!(mesh.workloads().count(), expected.workloads, "{at}");
    for Resolved { address, port, to } in &expected.resolved {
        let shown = |endpoint: &mesh_core::model::Endpoint| {
            let workload = &endpoint.workload;
            let target = SocketAddr::new(endpoint.address, endpoint.port);
            format!(
                "{}/{} {target}",
                workload.identity.namespace(),
                workload.name
            )
        };
        let found = match mesh.resolve(*address, *port) {
            Resolution::Workload(endpoint) => Targets::Known(vec![shown(&endpoint)]),
            Resolution::Service(_, endpoints) => {
                let mut shown: Vec<_> = endpoints.iter().map(shown).collect();
                shown.sort();
                Targets::Known(shown)
            }
            Resolution::Unknown => Targets::Unknown("unknown".to_owned()),
        };
        assert_eq!(found, *to, "{at}: {address} {port}");
    }
    for (pod, memory) in &expected.budgets {
        let (namespace, name) = pod.split_once('/').unwrap();
        let uid = mesh_control::registry::workload_uid(namespace, name);
        let budget = &mesh.workload(&uid).unwrap().budget;
        assert_eq!(budget.memory_max_mib, *memory, "{at}: {pod}");
    }
    drop(directory);
    let revoked = Revoked {
        nodes: revocations.nodes.into_iter().collect(),
        serials: revocations.serials.len(),
    };
    assert_eq!(revoked, expected.revoked, "{at}");
    if mode != "a cluster, in disorder" {
        let told: Vec<_> = told.iter().map(|mistake| &mistake.what).collect();
        assert_eq!(told.len(), expected.told.len(), "{at}: {told:?}");
        for (told, part) in told.iter().zip(&expected.told) {
            assert!(told.contains(part.as_str()), "{at}: {told}");
        }
    }
    let admin = Admin {
        registry,
        resolvers: vec![],
        clocks: Arc::new(Clocks::default()),
        series: Series::detached(),
    };
    let place = |text: &str| match text.parse() {
        Ok(address) => Place::Address(address),
        Err(_) => Place::Name(text.to_owned()),
    };
    for flow in &expected.decided {
        let answer = admin.answer(&Request::Why {
            source: place(&flow.from),
            destination: place(&flow.to),
            port: Some(flow.port),
            protocol: Protocol::Tcp,
        });
        let why = answer
            .why
            .unwrap_or_else(|| panic!("{at}: {:?}", answer.error));
        let reason = why.reason.map(|reason| reason.code);
        let (from, to, port) = (&flow.from, &flow.to, flow.port);
        let found = (
            why.outcome,
            reason.as_deref().filter(|_| flow.reason.is_some()),
        );
        let wanted = (flow.outcome, flow.reason.as_deref());
        assert_eq!(found, wanted, "{at}: {from} to {to} {port}: {}", why.text);
    }
}

#[tokio::test]
async fn each_scenario_is_the_same_in_both_modes_in_whatever_order_it_comes() {
    for (path, text, expected) in scenarios() {
        let standalone = standalone(&path, &text);
        let version = standalone.registry.current().version().to_string();
        let cluster = cluster_at_once(&text).await;
        assert_eq!(
            &*cluster.registry.current().version(),
            version,
            "{}",
            path.display()
        );
        let disordered = cluster_disordered(&text, &version).await;
        for made in [standalone, cluster, disordered] {
            check(&path, &expected, made);
        }
    }
}
