//! Writes statuses: by one replica, no more often than the API server can be asked to, and only what is
//! another than what is there.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use metrics::counter;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::chain;
use super::kind::Kind;
use super::lease::{Lease, WriteFault};
use super::status::Reported;
use crate::registry::{Coverage, Registry};

/// Who the API server takes for the owner of these fields.
const MANAGER: &str = "mesh-control";
/// The lease of the replica that writes.
const LEASE: &str = "mesh-control-status";

/// How statuses are written.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Other replicas take over from one that has not been heard of for so long.
    pub lease: Duration,
    /// How often it is looked what nodes have in force, and what could not be written is tried again.
    pub look: Duration,
    /// Shortest time between two writes of one object that tell of nodes alone.
    pub nodes: Duration,
    /// Shortest time between two writes.
    pub write: Duration,
    /// How long nodes have to report to a new process before they are said not to have.
    pub unheard: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            look: Duration::from_secs(5),
            nodes: Duration::from_secs(10),
            write: Duration::from_millis(50),
            unheard: Duration::from_secs(30),
        }
    }
}

/// What tells an object from every other there was.
type Key = (Kind, String, String, Option<String>);

/// What was written to an object.
struct Written {
    status: Value,
    at: Instant,
}

/// Writes the statuses of objects as they are told.
pub(super) struct Writer {
    client: Client,
    registry: Weak<Registry>,
    lease: Lease,
    pace: Pace,
    began: Instant,
    written: BTreeMap<Key, Written>,
    /// What is in the way of a write, or of the lease.
    trouble: BTreeMap<String, String>,
}

impl Writer {
    pub(super) fn new(client: Client, registry: Weak<Registry>, pace: Pace) -> Self {
        Self {
            lease: Lease::new(&client, LEASE, pace.lease),
            client,
            registry,
            pace,
            began: Instant::now(),
            written: BTreeMap::new(),
            trouble: BTreeMap::new(),
        }
    }

    /// Writes for as long as somebody tells what.
    pub(super) async fn run(mut self, mut reported: watch::Receiver<Vec<Reported>>) {
        let mut look = tokio::time::interval(self.pace.look.min(self.pace.lease / 3));
        loop {
            tokio::select! {
                changed = reported.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
            }
            let renewed = self.lease.renew().await;
            self.note("lease", renewed.err().as_ref());
            if !self.lease.is_held() {
                // What another one writes meanwhile is not known here.
                self.written.clear();
                continue;
            }
            let objects = reported.borrow_and_update().clone();
            self.round(&objects).await;
        }
    }

    async fn round(&mut self, objects: &[Reported]) {
        let there: std::collections::BTreeSet<Key> = objects.iter().map(key).collect();
        self.written.retain(|key, _| there.contains(key));
        for object in objects {
            let Some(registry) = self.registry.upgrade() else {
                return;
            };
            let coverage = self.coverage(object, &registry);
            drop(registry);
            let key = key(object);
            let earlier = self.written.get(&key);
            let known = earlier.map_or(&object.status, |earlier| &earlier.status);
            let Some(status) = object.wanted(known, coverage.as_ref(), &now()) else {
                continue;
            };
            let of_nodes_alone = object.wanted(known, None, &now()).is_none();
            let lately = earlier.is_some_and(|earlier| earlier.at.elapsed() < self.pace.nodes);
            if of_nodes_alone && lately {
                continue;
            }
            if !self.lease.is_held() {
                return;
            }
            let written = self.write(object, &status).await;
            let label = format!("{} {}/{}", object.kind.name, object.namespace, object.name);
            self.note(&label, written.as_ref().err());
            if written.is_ok() {
                let at = Instant::now();
                self.written.insert(key, Written { status, at });
            }
            tokio::time::sleep(self.pace.write).await;
        }
    }

    /// Where it is in force, as far as that can be told by now.
    fn coverage(&self, object: &Reported, registry: &Registry) -> Option<Coverage> {
        let (scope, since) = (object.scope.as_ref()?, object.since?);
        let coverage = registry.coverage(scope, since, Instant::now());
        let early = coverage.unheard > 0 && self.began.elapsed() < self.pace.unheard;
        (!early).then_some(coverage)
    }

    async fn write(&self, object: &Reported, status: &Value) -> Result<(), WriteFault> {
        let resource = object.kind.resource();
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": object.name, "namespace": object.namespace, "uid": object.uid},
            "status": status,
        });
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &object.namespace, &resource);
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(patch);
        let answer = api.patch_status(&object.name, &params, &patch);
        let patience = self.lease.patience();
        let (outcome, written) = match tokio::time::timeout(patience, answer).await {
            Ok(Ok(_)) => ("written", Ok(())),
            // Gone meanwhile, and perhaps made anew.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                ("gone", Ok(()))
            }
            Ok(Err(error)) => ("failed", Err(error.into())),
            Err(_) => ("failed", Err(WriteFault::Late(patience))),
        };
        counter!("nodemesh_control_status_writes_total", "outcome" => outcome).increment(1);
        written
    }

    /// Tells of trouble once, and of its end.
    fn note(&mut self, what: &str, error: Option<&WriteFault>) {
        let Some(why) = error.map(|error| chain(error)) else {
            if self.trouble.remove(what).is_some() {
                tracing::info!(what, "Kubernetes API: status written again");
            }
            return;
        };
        if self.trouble.get(what) != Some(&why) {
            tracing::warn!(
                what,
                error = why,
                "Kubernetes API: status not written; tried again (the control component's role must allow to patch statuses, and to get, create and update leases in its namespace)"
            );
        }
        self.trouble.insert(what.to_owned(), why);
    }
}

fn key(object: &Reported) -> Key {
    let (namespace, name) = (object.namespace.clone(), object.name.clone());
    (object.kind, namespace, name, object.uid.clone())
}

fn now() -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0);
    let now = now.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339);
    now.unwrap_or_default()
}
