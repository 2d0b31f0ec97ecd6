//! What the supervisor wants known: collected until a batch is whole, then applied in one go.

use mesh_api::worker::{
    Applied, Change, Changes, Destination, PodPolicy, SourceInfo, change, to_supervisor::Message,
};

use super::context::Context;
use super::metrics::Count;
use super::policy::InForce;

/// A batch that is coming in.
#[derive(Default)]
pub(crate) struct Batch {
    policies: Vec<PodPolicy>,
    destinations: Vec<Destination>,
    sources: Vec<SourceInfo>,
}

impl Batch {
    /// Takes in one message. With the last one of the batch everything takes effect, before any
    /// flow gets its turn. True when a policy has been put in force.
    pub(crate) fn receive(&mut self, changes: Changes, context: &Context) -> bool {
        for Change { change } in changes.changes {
            match change {
                Some(change::Change::Policy(policy)) => self.policies.push(policy),
                Some(change::Change::Destination(destination)) => {
                    self.destinations.push(destination);
                }
                Some(change::Change::Source(source)) => self.sources.push(source),
                None => tracing::warn!("a change of an unknown kind was ignored"),
            }
        }
        !changes.more && std::mem::take(self).apply(context)
    }

    fn apply(self, context: &Context) -> bool {
        let in_force = !self.policies.is_empty() && replace_policy(context, &self.policies);
        let mut changed = in_force;
        for destination in &self.destinations {
            changed |= context.discovery.push(destination);
        }
        for source in &self.sources {
            changed |= context.sources.push(source);
        }
        if changed {
            context.policy.changed();
        }
        in_force
    }
}

/// A policy that can't be read changes nothing: half of it might allow what the rest denies.
fn replace_policy(context: &Context, parts: &[PodPolicy]) -> bool {
    match InForce::from_wire(parts) {
        Ok(policy) => {
            context.policy.replace(policy);
            true
        }
        Err(error) => {
            context.metrics.add(Count::PoliciesUnreadable, 1);
            let version = parts.first().map_or("", |part| &part.version);
            let in_force = context.policy.in_force();
            let kept = in_force.as_ref().map_or("none", |policy| policy.version());
            tracing::error!(
                %error, version, kept,
                "the pod's policy can't be read, the one before it stays in force; do the agent and control come from the same release?"
            );
            false
        }
    }
}

/// Tells the supervisor which policy is in force.
pub(crate) async fn send_applied(context: &Context) {
    if let Some(policy) = context.policy.in_force() {
        let applied = Applied {
            version: policy.version().to_owned(),
        };
        let outbox = &context.outbox;
        outbox.send(Message::Applied(applied), Vec::new()).await;
    }
}
