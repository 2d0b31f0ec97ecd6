//! What becomes of an object, written into its status: whether it can be read, and whether all that it
//! names is there.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::chain;
use super::kind::Kind;
use crate::sources::manifests::Mistake;

/// Who the API server takes for the owner of these fields.
const MANAGER: &str = "mesh-control";
/// When what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Longest message, in characters: far below what the definition takes.
const MAX_MESSAGE: usize = 2048;

/// An object of the mesh's own kinds, as far as its status goes.
#[derive(Clone, Debug)]
pub(super) struct Reported {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) generation: Option<i64>,
    /// What the API server has.
    pub(super) conditions: Value,
    /// What is wrong with it.
    pub(super) mistakes: Vec<Mistake>,
}

/// A condition, but for its time.
#[derive(Debug, PartialEq)]
struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Reported {
    /// The conditions as they should be; `None` where they are so.
    fn wanted(&self, now: &str) -> Option<Value> {
        let mut changed = false;
        let conditions: Vec<Value> = conditions(&self.mistakes)
            .into_iter()
            .map(|condition| {
                let Condition {
                    kind,
                    status,
                    reason,
                    message,
                } = condition;
                let mut wanted = json!({
                    "type": kind, "status": status, "reason": reason, "message": message,
                });
                if let Some(generation) = self.generation {
                    wanted["observedGeneration"] = generation.into();
                }
                let there = self.conditions.as_array().into_iter().flatten();
                let there = there.into_iter().find(|there| there["type"] == kind);
                let since = there.filter(|there| there["status"] == status);
                let since = since.map(|there| there["lastTransitionTime"].clone());
                wanted["lastTransitionTime"] = since.unwrap_or_else(|| now.into());
                changed |= there != Some(&wanted);
                wanted
            })
            .collect();
        changed.then_some(Value::Array(conditions))
    }
}

fn conditions(mistakes: &[Mistake]) -> [Condition; 2] {
    let told = |dangling: bool| {
        let of_this_sort = mistakes
            .iter()
            .filter(|mistake| mistake.dangling == dangling);
        let texts: Vec<_> = of_this_sort
            .map(|mistake| match mistake.field.as_str() {
                "" => mistake.what.clone(),
                field => format!("{field}: {}", mistake.what),
            })
            .collect();
        texts
            .join("; ")
            .chars()
            .take(MAX_MESSAGE)
            .collect::<String>()
    };
    let condition = |kind, wrong: String, reasons: [&'static str; 2], right: &str| {
        let is_right = wrong.is_empty();
        Condition {
            kind,
            status: if is_right { "True" } else { "False" },
            reason: reasons[usize::from(!is_right)],
            message: if is_right { right.to_owned() } else { wrong },
        }
    };
    [
        condition(
            "Accepted",
            told(false),
            ["Accepted", "Invalid"],
            "it is in discovery",
        ),
        condition(
            "Complete",
            told(true),
            ["Complete", "NotFound"],
            "all that it names is there",
        ),
    ]
}

/// Writes statuses for as long as somebody tells them.
pub(super) async fn write(client: Client, mut reported: watch::Receiver<Vec<Reported>>) {
    let mut trouble: BTreeMap<(Kind, String, String), String> = BTreeMap::new();
    loop {
        let objects = reported.borrow_and_update().clone();
        let mut failed = false;
        for object in objects {
            let written = write_one(&client, &object).await;
            let key = (object.kind, object.namespace.clone(), object.name.clone());
            match written {
                Ok(()) => {
                    trouble.remove(&key);
                }
                Err(error) => {
                    failed = true;
                    let why = chain(&error);
                    let (kind, namespace, name) = (key.0.name, &key.1, &key.2);
                    if trouble.get(&key) != Some(&why) {
                        tracing::warn!(
                            kind,
                            namespace,
                            name,
                            error = why,
                            "Kubernetes API: status not written; tried again"
                        );
                    }
                    trouble.insert(key, why);
                }
            }
        }
        let again = async {
            match failed {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = reported.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

async fn write_one(client: &Client, object: &Reported) -> Result<(), kube::Error> {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0);
    let now = now.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339);
    let Some(conditions) = object.wanted(&now.unwrap_or_default()) else {
        return Ok(());
    };
    let resource = object.kind.resource();
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": object.name, "namespace": object.namespace},
        "status": {"conditions": conditions},
    });
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &object.namespace, &resource);
    let params = PatchParams::apply(MANAGER).force();
    match api
        .patch_status(&object.name, &params, &Patch::Apply(patch))
        .await
    {
        // Gone meanwhile.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        written => written.map(drop),
    }
}
