//! Takes the taint off: with a patch of that taint alone, which fails where the node has become another
//! since it was looked at, so that any number of replicas may try.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use metrics::{counter, gauge};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{TaintKey, Tainted};
use crate::registry::{Agent, Registry};
use crate::sources::kubernetes::chain;
use crate::sources::kubernetes::lease::WriteFault;

/// How often it is looked which agents are ready, while a node bears the taint.
const LOOK: Duration = Duration::from_secs(1);
/// How long the API server may take for a patch.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time between two tries of one node; the first is a look.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// The API server's answers to a patch whose tests don't hold, and to a write that another one overtook.
const OVERTAKEN: [u16; 2] = [422, 409];
const GONE: u16 = 404;

/// What became of a patch.
enum Outcome {
    Removed,
    /// The node is another than when it was looked at.
    Overtaken,
    Gone,
}

/// A node that bears the taint, between two tries.
#[derive(Default)]
struct Waiting {
    uid: Option<String>,
    /// What was said of it last.
    told: String,
    /// Failures in a row.
    failures: u32,
    /// When it is tried again.
    due: Option<Instant>,
}

/// Takes the taint off nodes whose agents are ready.
pub(crate) struct Remover {
    api: Api<Node>,
    key: TaintKey,
    registry: Weak<Registry>,
    look: Duration,
    waiting: BTreeMap<String, Waiting>,
}

impl Remover {
    /// One that looks at least every `look`.
    pub(crate) fn new(
        client: Client,
        key: TaintKey,
        registry: Weak<Registry>,
        look: Duration,
    ) -> Self {
        Self {
            api: Api::all(client),
            key,
            registry,
            look: look.min(LOOK),
            waiting: BTreeMap::new(),
        }
    }

    /// Goes on for as long as somebody tells of nodes.
    pub(crate) async fn run(mut self, mut nodes: watch::Receiver<BTreeMap<String, Tainted>>) {
        let mut look = tokio::time::interval(self.look);
        loop {
            let any = !nodes.borrow().is_empty();
            tokio::select! {
                changed = nodes.changed() => if changed.is_err() { return },
                _ = look.tick(), if any => {}
            }
            let tainted = nodes.borrow_and_update().clone();
            self.round(&tainted).await;
        }
    }

    async fn round(&mut self, tainted: &BTreeMap<String, Tainted>) {
        gauge!("nodemesh_control_startup_tainted_nodes").set(tainted.len() as f64);
        self.waiting.retain(|name, waiting| {
            let there = tainted.get(name);
            there.is_some_and(|node| node.uid == waiting.uid)
        });
        for (name, node) in tainted {
            let now = Instant::now();
            let waiting = self.waiting.entry(name.clone()).or_default();
            waiting.uid.clone_from(&node.uid);
            if waiting.due.is_some_and(|due| now < due) {
                continue;
            }
            let Some(registry) = self.registry.upgrade() else {
                return;
            };
            let agent = registry.agent(name, node.since, now);
            drop(registry);
            let Some(lacks) = lacks(agent) else {
                self.remove(name, node).await;
                continue;
            };
            if waiting.told != lacks {
                tracing::info!(node = name, why = lacks, "start-up taint stays");
                waiting.told = lacks;
            }
        }
    }

    async fn remove(&mut self, name: &str, node: &Tainted) {
        let outcome = self.patch(name, node).await;
        let waiting = self.waiting.entry(name.to_owned()).or_default();
        let (label, pause) = match &outcome {
            Ok(Outcome::Removed) => {
                tracing::info!(node = name, "start-up taint taken off: its agent is ready");
                // The watch says so meanwhile.
                ("removed", LONGEST_RETRY)
            }
            Ok(Outcome::Gone) => ("gone", LONGEST_RETRY),
            // With the next state of it, which the watch brings.
            Ok(Outcome::Overtaken) => ("overtaken", self.look),
            Err(error) => {
                let why = chain(error);
                if waiting.told != why {
                    tracing::warn!(
                        node = name,
                        error = why,
                        "start-up taint not taken off, so no pod is scheduled there; tried again (the control component's role must allow to patch nodes)"
                    );
                    waiting.told = why;
                }
                let pause = self.look * 2u32.saturating_pow(waiting.failures.min(10));
                ("failed", pause.min(LONGEST_RETRY))
            }
        };
        waiting.failures = match outcome {
            Err(_) => waiting.failures.saturating_add(1),
            Ok(_) => 0,
        };
        waiting.due = Some(Instant::now() + pause);
        counter!("nodemesh_control_startup_taints_total", "outcome" => label).increment(1);
    }

    async fn patch(&self, name: &str, node: &Tainted) -> Result<Outcome, WriteFault> {
        let patch = without(&self.key, node);
        let Ok(patch) = serde_json::from_value(patch).map(Patch::Json::<()>) else {
            // What is made above is a patch.
            return Ok(Outcome::Overtaken);
        };
        let params = PatchParams::default();
        let answer = self.api.patch(name, &params, &patch);
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(_)) => Ok(Outcome::Removed),
            Ok(Err(kube::Error::Api(status))) if OVERTAKEN.contains(&status.code) => {
                Ok(Outcome::Overtaken)
            }
            Ok(Err(kube::Error::Api(status))) if status.code == GONE => Ok(Outcome::Gone),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(WriteFault::Late(PATIENCE)),
        }
    }
}

/// Why the taint stays; `None` where it is to go.
fn lacks(agent: Agent) -> Option<String> {
    match agent {
        Agent::Ready => None,
        Agent::Unheard => Some("its agent has not reported to this mesh-control yet".to_owned()),
        Agent::Silent => Some("its agent has fallen silent".to_owned()),
        Agent::NotReady(why) => Some(format!("its agent is not ready: {why}")),
    }
}

/// The patch (RFC 6902) that takes the taint off this very node, and fails where its taints have moved.
fn without(key: &TaintKey, node: &Tainted) -> Value {
    let mut patch = Vec::new();
    if let Some(uid) = &node.uid {
        patch.push(json!({"op": "test", "path": "/metadata/uid", "value": uid}));
    }
    // From the end, so that what comes earlier stays where it is.
    for (index, taint) in node.taints.iter().enumerate().rev() {
        if taint["key"] == key.as_str() {
            let path = format!("/spec/taints/{index}");
            patch.push(json!({"op": "test", "path": path, "value": taint}));
            patch.push(json!({"op": "remove", "path": path}));
        }
    }
    patch.into()
}
