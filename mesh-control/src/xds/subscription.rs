//! What a stream has subscribed to of one type of resource, and what it was sent of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::OWN_NAME as OWN;
use mesh_api::ads::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use metrics::counter;

use super::plan::Plan;
use super::session::SessionFault;
use crate::registry::{Directory, Pending, Resource, ResourceType, Subject, Topic};

/// Most names that one stream may subscribe to, per type.
const MAX_NAMES: usize = 65_536;
/// A response is cut after this many bytes of resources, well below the 4 MiB that gRPC
/// clients take by default.
const RESPONSE_LEN: usize = 1024 * 1024;
const WILDCARD: &str = "*";

/// A subscription. Its responses lack what they have in common with those of other types:
/// nonce, version of the whole, `more`.
#[derive(Debug)]
pub(super) struct Subscription {
    kind: ResourceType,
    wildcard: bool,
    own: bool,
    names: BTreeSet<String>,
    plan: Plan,
    /// Whether the plan is another than when it was last asked for.
    planned: bool,
    /// Name → version of what the client holds.
    sent: BTreeMap<Arc<str>, Arc<str>>,
}

/// Names of resources that are to be looked at.
type Candidates = BTreeSet<Arc<str>>;

impl Subscription {
    /// From the first request of its type, which is to be answered by [`Self::begin`].
    pub(super) fn new(kind: ResourceType, first: &DeltaDiscoveryRequest) -> Self {
        let held = first.initial_resource_versions.iter();
        Self {
            kind,
            wildcard: first.resource_names_subscribe.is_empty(),
            own: false,
            names: BTreeSet::new(),
            plan: Plan::default(),
            planned: true,
            sent: held
                .map(|(name, version)| (name.as_str().into(), version.as_str().into()))
                .collect(),
        }
    }

    /// Whether it is for all that a node needs for its own pods.
    pub(super) fn is_own(&self) -> bool {
        self.own
    }

    /// Whether it has an interest in something else than when this was last asked.
    pub(super) fn take_planned(&mut self) -> bool {
        std::mem::take(&mut self.planned)
    }

    /// What it has an interest in.
    pub(super) fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.plan.wanted.iter().chain(&self.plan.decisive)
    }

    /// Answers the first request, always.
    pub(super) fn begin(
        &mut self,
        first: &DeltaDiscoveryRequest,
        node: &str,
        directory: &Directory,
    ) -> Result<Vec<DeltaDiscoveryResponse>, SessionFault> {
        let mut candidates: Candidates = self.sent.keys().cloned().collect();
        self.take(first)?;
        self.replan(node, directory, &mut candidates);
        let missing = self.missing(first, directory);
        Ok(self.responses(directory, candidates, missing, true))
    }

    /// Takes a further request; one that asks for names is answered.
    pub(super) fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        node: &str,
        directory: &Directory,
    ) -> Result<Vec<DeltaDiscoveryResponse>, SessionFault> {
        let subscribes = !request.resource_names_subscribe.is_empty();
        if !subscribes && request.resource_names_unsubscribe.is_empty() {
            return Ok(Vec::new());
        }
        let mut candidates = Candidates::new();
        // Asking again for a name gets it again, whatever was sent before; at the start of a
        // stream the client has said what it holds.
        for name in asked(request) {
            if let Some(resource) = directory.find(self.kind, name) {
                self.sent.remove(&resource.name);
                candidates.insert(resource.name.clone());
            }
        }
        self.take(request)?;
        self.replan(node, directory, &mut candidates);
        let missing = self.missing(request, directory);
        Ok(self.responses(directory, candidates, missing, subscribes))
    }

    /// Says what to send after the mesh has changed.
    pub(super) fn changed(
        &mut self,
        pending: &Pending,
        node: &str,
        directory: &Directory,
    ) -> Vec<DeltaDiscoveryResponse> {
        let of_kind = pending.names.iter().filter(|(kind, _)| *kind == self.kind);
        let mut candidates: Candidates = of_kind.map(|(_, name)| name.clone()).collect();
        if pending.plan {
            self.replan(node, directory, &mut candidates);
        }
        self.responses(directory, candidates, BTreeSet::new(), false)
    }

    fn take(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), SessionFault> {
        for (names, on) in [
            (&request.resource_names_subscribe, true),
            (&request.resource_names_unsubscribe, false),
        ] {
            for name in names {
                match (name.as_str(), on) {
                    (WILDCARD, _) => self.wildcard = on,
                    (OWN, _) => self.own = on,
                    (_, true) => {
                        self.names.insert(name.clone());
                    }
                    (_, false) => {
                        self.names.remove(name);
                    }
                }
            }
        }
        match self.names.len() > MAX_NAMES {
            true => Err(SessionFault::TooManyNames),
            false => Ok(()),
        }
    }

    /// Names that lead nowhere are reported as removed, so that the client need not wait.
    fn missing(&self, request: &DeltaDiscoveryRequest, directory: &Directory) -> BTreeSet<String> {
        asked(request)
            .filter(|name| directory.find(self.kind, name).is_none())
            .map(str::to_owned)
            .collect()
    }

    /// Makes the plan anew. What it is about now and was not before, or the other way round, is
    /// to be looked at.
    fn replan(&mut self, node: &str, directory: &Directory, candidates: &mut Candidates) {
        let own = self.own.then_some(node);
        let plan = Plan::new(self.kind, self.wildcard, own, &self.names, directory);
        if plan == self.plan {
            return;
        }
        self.planned = true;
        let before = std::mem::replace(&mut self.plan, plan);
        for topic in self.plan.wanted.difference(&before.wanted) {
            let about = directory.about(self.kind, topic);
            candidates.extend(about.map(|resource| resource.name.clone()));
        }
        if !before.wanted.is_subset(&self.plan.wanted) {
            candidates.extend(self.sent.keys().cloned());
        }
    }

    fn responses(
        &mut self,
        directory: &Directory,
        candidates: Candidates,
        mut removed: BTreeSet<String>,
        answer_always: bool,
    ) -> Vec<DeltaDiscoveryResponse> {
        let empty = || DeltaDiscoveryResponse {
            type_url: self.kind.url().to_owned(),
            ..Default::default()
        };
        let mut responses = Vec::new();
        let mut response = empty();
        let mut len = 0;
        for name in candidates {
            let wanted = directory.resource(self.kind, &name);
            let Some(resource) = wanted.filter(|resource| self.plan.wants(resource)) else {
                if self.sent.remove(&name).is_some() {
                    removed.insert(name.to_string());
                }
                continue;
            };
            if self.sent.get(&name) == Some(&resource.version) {
                continue;
            }
            if len + resource.body.len() > RESPONSE_LEN && !response.resources.is_empty() {
                responses.push(std::mem::replace(&mut response, empty()));
                len = 0;
            }
            len += resource.body.len();
            tell_inexact(resource);
            response.resources.push(encode(self.kind, resource));
            self.sent.insert(name, resource.version.clone());
        }
        response.removed_resources = removed.into_iter().collect();
        let nothing = response.resources.is_empty() && response.removed_resources.is_empty();
        if !nothing || (answer_always && responses.is_empty()) {
            responses.push(response);
        }
        responses
    }
}

/// The names that a request subscribes to, but for those that stand for more.
fn asked(request: &DeltaDiscoveryRequest) -> impl Iterator<Item = &str> {
    let names = request.resource_names_subscribe.iter();
    names
        .map(String::as_str)
        .filter(|name| ![WILDCARD, OWN].contains(name))
}

/// Says that a client can't be told the whole of a policy.
fn tell_inexact(resource: &Resource) {
    if resource.subject == Subject::Istio(false) {
        counter!("nodemesh_control_policies_narrowed_total").increment(1);
        tracing::warn!(
            policy = %resource.name,
            "told to a data plane of Istio's, which knows no labels and services of peers: where the policy names them, more is refused there than it says"
        );
    }
}

fn encode(kind: ResourceType, resource: &Resource) -> ads::Resource {
    ads::Resource {
        version: resource.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: kind.url().to_owned(),
            value: resource.body.clone(),
        }),
        name: resource.name.to_string(),
        aliases: resource.aliases().collect(),
    }
}
