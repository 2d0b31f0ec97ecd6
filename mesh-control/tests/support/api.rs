//! A double of a Kubernetes API server: lists in pages, watches with bookmarks, and what goes wrong
//! with a real one, on demand.

#![allow(
    dead_code,
    reason = "a module of several test binaries, each of which uses its part"
)]

#[path = "api_http.rs"]
mod http;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use hyper::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Plural of each kind that the double knows.
const PLURALS: [(&str, &str); 15] = [
    ("Namespace", "namespaces"),
    ("ServiceAccount", "serviceaccounts"),
    ("Pod", "pods"),
    ("Service", "services"),
    ("Node", "nodes"),
    ("EndpointSlice", "endpointslices"),
    ("AuthorizationPolicy", "authorizationpolicies"),
    ("AuthenticationPolicy", "authenticationpolicies"),
    ("ServicePolicy", "servicepolicies"),
    ("WorkerBudget", "workerbudgets"),
    ("Revocation", "revocations"),
    ("Lease", "leases"),
    ("CustomResourceDefinition", "customresourcedefinitions"),
    ("Deployment", "deployments"),
    ("DaemonSet", "daemonsets"),
];
/// Those of objects without a namespace.
const WIDE: [&str; 3] = ["namespaces", "nodes", "customresourcedefinitions"];

/// What happened to an object.
#[derive(Clone)]
struct Change {
    version: u64,
    plural: &'static str,
    what: &'static str,
    object: Value,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    changes: Vec<Change>,
    /// Changes up to this version are forgotten: who asks from there gets 410.
    compacted: u64,
    /// Kinds that are answered with this status, by plural.
    refused: HashMap<&'static str, StatusCode>,
    /// Requests so far: lists and watches, by plural.
    asked: HashMap<(&'static str, bool), usize>,
    /// Writes so far, by plural.
    writes: HashMap<&'static str, usize>,
    /// Requests for one object that were answered as `refused` has it, by plural.
    turned_away: HashMap<&'static str, usize>,
    /// What somebody else writes just before the next write of a kind, by plural.
    overtaking: HashMap<&'static str, Value>,
}

type Key = (&'static str, String, String);

impl State {
    /// Creates or replaces an object, and returns the version.
    fn put(&mut self, mut object: Value) -> u64 {
        let plural = plural(object["kind"].as_str().unwrap());
        if !WIDE.contains(&plural) && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = "default".into();
        }
        if object["apiVersion"].is_null() {
            object["apiVersion"] = "v1".into();
        }
        let key = key(plural, &object);
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let old = self.objects.get(&key);
        let generation = old.map_or(1, |old| {
            let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
            before + i64::from(old["spec"] != object["spec"])
        });
        object["metadata"]["generation"] = generation.into();
        let what = if old.is_some() { "MODIFIED" } else { "ADDED" };
        if object["metadata"]["uid"].is_null() {
            let born = old.map(|old| old["metadata"]["uid"].clone());
            let metadata = &object["metadata"];
            let new = match (plural, &metadata["namespace"], &metadata["name"]) {
                ("pods", Value::String(namespace), Value::String(name)) => pod_uid(namespace, name),
                _ => format!("uid-{version}"),
            };
            object["metadata"]["uid"] = born.unwrap_or_else(|| new.into());
        }
        self.objects.insert(key, object.clone());
        self.changes.push(Change {
            version,
            plural,
            what,
            object,
        });
        version
    }

    fn delete(&mut self, key: &Key) -> Option<u64> {
        let mut object = self.objects.remove(key)?;
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.changes.push(Change {
            version,
            plural: key.0,
            what: "DELETED",
            object,
        });
        Some(version)
    }
}

/// The double. Its server ends with it.
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// Counts up when all connections are to be cut.
    cut: watch::Sender<u64>,
    pub(crate) url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
        self.cut();
    }
}

impl Api {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (changed, cut) = (watch::Sender::new(0), watch::Sender::new(0));
        let server = tokio::spawn(http::serve(
            listener,
            state.clone(),
            changed.clone(),
            cut.clone(),
        ));
        Self {
            state,
            changed,
            cut,
            url,
            server,
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let config = kube::Config::new(self.url.parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Creates or replaces the objects of a manifest.
    pub(crate) fn apply(&self, manifests: &str) {
        for document in manifests.split("\n---\n") {
            let object: Value = serde_yaml_ng::from_str(document).unwrap();
            self.put(object);
        }
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, object: Value) {
        self.changed.send_replace(self.state().put(object));
    }

    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let key = (plural(kind), namespace.to_owned(), name.to_owned());
        let version = self.state().delete(&key).expect("there is such an object");
        self.changed.send_replace(version);
    }

    /// An object; null if there is none.
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let key = (plural(kind), namespace.to_owned(), name.to_owned());
        self.state().objects.get(&key).cloned().unwrap_or_default()
    }

    /// How often objects of a kind have been written over HTTP.
    pub(crate) fn writes(&self, kind: &str) -> usize {
        let writes = self.state().writes.get(plural(kind)).copied();
        writes.unwrap_or(0)
    }

    /// The newest event of each object once more, and an older one of each before it, as no API server
    /// should send them.
    pub(crate) fn stutter(&self) {
        let mut state = self.state();
        let again: Vec<_> = state
            .objects
            .iter()
            .map(|(key, o)| (key.0, o.clone()))
            .collect();
        for (plural, object) in again.into_iter().rev() {
            for _ in 0..2 {
                state.version += 1;
                let (version, object) = (state.version, object.clone());
                state.changes.push(Change {
                    version,
                    plural,
                    what: "MODIFIED",
                    object,
                });
            }
        }
        let version = state.version;
        drop(state);
        self.changed.send_replace(version);
    }

    /// Answers requests for a kind with this status, or as usual again.
    pub(crate) fn refuse(&self, kind: &str, status: Option<u16>) {
        let plural = plural(kind);
        let mut state = self.state();
        match status {
            Some(status) => {
                let status = StatusCode::from_u16(status).unwrap();
                state.refused.insert(plural, status);
            }
            None => {
                state.refused.remove(plural);
            }
        }
    }

    /// How often one object of a kind was asked for, or to be written, and that was refused.
    pub(crate) fn turned_away(&self, kind: &str) -> usize {
        let turned_away = self.state().turned_away.get(plural(kind)).copied();
        turned_away.unwrap_or(0)
    }

    /// Has this object written just before the next write of its kind.
    pub(crate) fn overtake(&self, object: Value) {
        let plural = plural(object["kind"].as_str().unwrap());
        self.state().overtaking.insert(plural, object);
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cut| *cut += 1);
    }

    /// Forgets all changes: watches that go on from before must list anew.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.compacted = state.version;
        state.changes.clear();
    }

    /// The status of an object; null if it has none.
    pub(crate) fn status(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let key = (plural(kind), namespace.to_owned(), name.to_owned());
        let state = self.state();
        state.objects.get(&key).expect("there is such an object")["status"].clone()
    }

    /// How often a kind has been listed (each page counts) or watched.
    pub(crate) fn asked(&self, kind: &str, watch: bool) -> usize {
        let asked = self.state().asked.get(&(plural(kind), watch)).copied();
        asked.unwrap_or(0)
    }
}

/// The UID that a pod gets which is made without one.
pub(crate) fn pod_uid(namespace: &str, name: &str) -> String {
    format!("uid-of-{namespace}-{name}")
}

fn plural(kind: &str) -> &'static str {
    let found = PLURALS.iter().find(|(name, _)| *name == kind);
    found.unwrap_or_else(|| panic!("kind {kind}")).1
}

fn key(plural: &'static str, object: &Value) -> Key {
    let field = |name: &str| {
        let text = object["metadata"][name].as_str();
        text.unwrap_or_default().to_owned()
    };
    (plural, field("namespace"), field("name"))
}
