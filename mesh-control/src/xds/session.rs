//! One node's stream, as a pure state machine: requests and states of the mesh in, responses
//! out. Each type of resource has a subscription of its own.
//!
//! Source: the xDS protocol's incremental variant. A stream that begins a type without names
//! is a wildcard subscription to it; `*` asks for one by name.

use std::collections::BTreeSet;

use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::{ADDRESS_TYPE_URL, AUTHORIZATION_TYPE_URL, POLICY_TYPE_URL};

use super::subscription::Subscription;
use crate::registry::{Directory, Pending, ResourceType, Topic};

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionFault {
    /// A type of resource that is not served.
    #[error(
        "resources of type {0:?} are not served here; {ADDRESS_TYPE_URL}, {POLICY_TYPE_URL} and {AUTHORIZATION_TYPE_URL} are"
    )]
    TypeUrl(String),
    /// More names than a stream may have.
    #[error("a stream can subscribe to at most 65536 names of a type; use the wildcard")]
    TooManyNames,
}

/// What a stream has subscribed to and what it was sent.
#[derive(Debug, Default)]
pub struct Session {
    /// The node that it is of: what is its own follows from that.
    node: String,
    addresses: Option<Subscription>,
    policies: Option<Subscription>,
    istio: Option<Subscription>,
    responses: u64,
}

impl Session {
    /// A stream of this node.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            ..Self::default()
        }
    }

    /// Takes a request and says what to answer: nothing for a mere ACK or NACK. The answer is
    /// complete in itself: the last of its responses has no `more`.
    ///
    /// `directory` must be the state that the last call of [`Self::changed`] was given, so that
    /// no part of a change is let out by an answer.
    ///
    /// # Errors
    /// A request that ends the stream.
    pub fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        directory: &Directory,
    ) -> Result<Vec<DeltaDiscoveryResponse>, SessionFault> {
        let kind = ResourceType::of_url(&request.type_url)
            .ok_or_else(|| SessionFault::TypeUrl(request.type_url.clone()))?;
        let subscription = match kind {
            ResourceType::Address => &mut self.addresses,
            ResourceType::Policy => &mut self.policies,
            ResourceType::Istio => &mut self.istio,
        };
        let answer = match subscription {
            Some(subscription) => subscription.request(request, &self.node, directory)?,
            None => subscription
                .insert(Subscription::new(kind, request))
                .begin(request, &self.node, directory)?,
        };
        Ok(self.together(answer, directory))
    }

    /// Says what to send after the mesh has changed: responses of all types that are subscribed
    /// to, all but the last with `more`.
    ///
    /// `pending` are the changes since the last call, as far as they are about
    /// [what it has an interest in](Self::new_topics).
    pub fn changed(
        &mut self,
        pending: &Pending,
        directory: &Directory,
    ) -> Vec<DeltaDiscoveryResponse> {
        let subscriptions = [&mut self.addresses, &mut self.policies, &mut self.istio];
        let responses = subscriptions
            .into_iter()
            .flatten()
            .flat_map(|subscription| subscription.changed(pending, &self.node, directory))
            .collect();
        self.together(responses, directory)
    }

    /// All that it has an interest in now, if that is something else than when this was last
    /// asked. Gathering it costs more than most changes and every acknowledgement.
    pub fn new_topics(&mut self) -> Option<BTreeSet<Topic>> {
        let all = [&mut self.addresses, &mut self.policies, &mut self.istio];
        let mut planned = false;
        for subscription in all.into_iter().flatten() {
            planned |= subscription.take_planned();
        }
        let all = [&self.addresses, &self.policies, &self.istio];
        let topics = all.into_iter().flatten().flat_map(Subscription::topics);
        planned.then(|| topics.cloned().collect())
    }

    /// Tells a node the version of the whole, where nothing else is to be told.
    pub fn version(&mut self, directory: &Directory) -> Vec<DeltaDiscoveryResponse> {
        let nodes = self.addresses.as_ref().is_some_and(Subscription::is_own);
        let nothing = nodes.then(|| DeltaDiscoveryResponse {
            type_url: ADDRESS_TYPE_URL.to_owned(),
            ..DeltaDiscoveryResponse::default()
        });
        self.together(nothing.into_iter().collect(), directory)
    }

    /// Makes one batch of responses.
    fn together(
        &mut self,
        mut responses: Vec<DeltaDiscoveryResponse>,
        directory: &Directory,
    ) -> Vec<DeltaDiscoveryResponse> {
        let count = responses.len();
        for (index, response) in responses.iter_mut().enumerate() {
            self.responses += 1;
            response.nonce = self.responses.to_string();
            response.system_version_info = directory.version().to_string();
            response.more = index + 1 < count;
        }
        responses
    }
}
