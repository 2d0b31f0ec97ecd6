//! What becomes of an object, as its status says it: whether it can be read, whether all that it names is
//! there, and where it is in force.

use serde_json::{Value, json};

use super::kind::Kind;
use crate::registry::{Coverage, Scope};
use crate::sources::manifests::Mistake;

/// Longest message, in characters: far below what the definition takes.
const MAX_MESSAGE: usize = 2048;
/// Most nodes that are named.
const MAX_NODES: usize = 5;

/// An object of the mesh's own kinds, as far as its status goes.
#[derive(Clone, Debug)]
pub(super) struct Reported {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Option<String>,
    pub(super) generation: Option<i64>,
    /// What the API server has.
    pub(super) status: Value,
    /// What is wrong with it.
    pub(super) mistakes: Vec<Mistake>,
    /// Whom it is for, where nodes tell whether they have it.
    pub(super) scope: Option<Scope>,
    /// Number of the first state of the mesh that had it.
    pub(super) since: Option<u64>,
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
    /// The status as it should be, where it is `there`; `None` where it is so. Without `coverage` what is
    /// said of nodes stays.
    pub(super) fn wanted(
        &self,
        there: &Value,
        coverage: Option<&Coverage>,
        now: &str,
    ) -> Option<Value> {
        let earlier = |kind: &str| {
            let conditions = there["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().find(|there| there["type"] == kind)
        };
        let mut wanted = Vec::from(conditions(&self.mistakes));
        wanted.extend(coverage.map(in_force));
        let mut conditions: Vec<Value> = wanted
            .into_iter()
            .map(|condition| self.stamped(condition, earlier, now))
            .collect();
        let mut status = json!({});
        match (coverage, &self.scope) {
            (Some(coverage), _) => {
                status["nodes"] = format!("{}/{}", coverage.in_force, coverage.nodes).into();
            }
            (None, Some(_)) => {
                conditions.extend(earlier("InForce").cloned());
                if !there["nodes"].is_null() {
                    status["nodes"] = there["nodes"].clone();
                }
            }
            (None, None) => {}
        }
        status["conditions"] = conditions.into();
        (status != *there).then_some(status)
    }

    fn stamped<'a>(
        &self,
        condition: Condition,
        earlier: impl Fn(&str) -> Option<&'a Value>,
        now: &str,
    ) -> Value {
        let Condition {
            kind,
            status,
            reason,
            message,
        } = condition;
        let since = earlier(kind).filter(|there| there["status"] == status);
        let since = since.map(|there| there["lastTransitionTime"].clone());
        let mut stamped = json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since.unwrap_or_else(|| now.into()),
        });
        if let Some(generation) = self.generation {
            stamped["observedGeneration"] = generation.into();
        }
        stamped
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
        cut(&texts.join("; "))
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

fn in_force(coverage: &Coverage) -> Condition {
    let Coverage {
        nodes,
        in_force,
        missing,
        ..
    } = coverage;
    let (status, reason, message) = match (nodes, nodes - in_force) {
        (0, _) => (
            "True",
            "NoPods",
            "it is for no pod of the mesh now".to_owned(),
        ),
        (_, 0) => (
            "True",
            "InForce",
            format!("in force on {in_force} of {nodes} nodes"),
        ),
        (_, lacking) => {
            let named = missing.iter().take(MAX_NODES);
            let named: String = named
                .map(|(node, why)| format!("; {node}: {why}"))
                .collect();
            let more = match lacking.saturating_sub(MAX_NODES) {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            let message = format!("in force on {in_force} of {nodes} nodes{named}{more}");
            ("False", "NotEverywhere", cut(&message))
        }
    };
    Condition {
        kind: "InForce",
        status,
        reason,
        message,
    }
}

fn cut(message: &str) -> String {
    message.chars().take(MAX_MESSAGE).collect()
}
