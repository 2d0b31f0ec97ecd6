//! What a stream has subscribed to of one type of resource, and what it was sent of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::ads::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::session::SessionFault;
use crate::registry::{Directory, Resource, ResourceType};

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
    names: BTreeSet<String>,
    /// Name → version of what the client holds.
    sent: BTreeMap<Arc<str>, Arc<str>>,
}

impl Subscription {
    /// From the first request of its type, which is to be answered by [`Self::begin`].
    pub(super) fn new(kind: ResourceType, first: &DeltaDiscoveryRequest) -> Self {
        let held = first.initial_resource_versions.iter();
        Self {
            kind,
            wildcard: first.resource_names_subscribe.is_empty(),
            names: BTreeSet::new(),
            sent: held
                .map(|(name, version)| (name.as_str().into(), version.as_str().into()))
                .collect(),
        }
    }

    /// Answers the first request, always.
    pub(super) fn begin(
        &mut self,
        first: &DeltaDiscoveryRequest,
        directory: &Directory,
    ) -> Result<Vec<DeltaDiscoveryResponse>, SessionFault> {
        self.take(first, directory)?;
        Ok(self.responses(directory, self.missing(first, directory), true))
    }

    /// Takes a further request; one that asks for names is answered.
    pub(super) fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        directory: &Directory,
    ) -> Result<Vec<DeltaDiscoveryResponse>, SessionFault> {
        // Asking again for a name gets it again, whatever was sent before; at the start of a
        // stream the client has said what it holds.
        for name in asked(request) {
            if let Some(resource) = directory.find(self.kind, name) {
                self.sent.remove(&resource.name);
            }
        }
        self.take(request, directory)?;
        if request.resource_names_subscribe.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.responses(directory, self.missing(request, directory), true))
    }

    /// Says what to send after the mesh has changed.
    pub(super) fn changed(&mut self, directory: &Directory) -> Vec<DeltaDiscoveryResponse> {
        self.responses(directory, BTreeSet::new(), false)
    }

    fn take(
        &mut self,
        request: &DeltaDiscoveryRequest,
        directory: &Directory,
    ) -> Result<(), SessionFault> {
        let subscribed = &request.resource_names_subscribe;
        self.wildcard |= subscribed.iter().any(|name| name == WILDCARD);
        self.names.extend(asked(request).map(str::to_owned));
        let unsubscribed = &request.resource_names_unsubscribe;
        for name in unsubscribed {
            if name == WILDCARD {
                self.wildcard = false;
            } else {
                self.names.remove(name);
            }
        }
        // The client forgets by itself what it no longer asks for.
        if !unsubscribed.is_empty() && !self.wildcard {
            let wanted = self.wanted(directory);
            self.sent.retain(|name, _| wanted.contains_key(name));
        }
        if self.names.len() > MAX_NAMES {
            return Err(SessionFault::TooManyNames);
        }
        Ok(())
    }

    /// Names that lead nowhere are reported as removed, so that the client need not wait.
    fn missing(&self, request: &DeltaDiscoveryRequest, directory: &Directory) -> BTreeSet<String> {
        asked(request)
            .filter(|name| directory.find(self.kind, name).is_none())
            .map(str::to_owned)
            .collect()
    }

    fn wanted<'a>(&self, directory: &'a Directory) -> BTreeMap<Arc<str>, &'a Arc<Resource>> {
        let names = self.names.iter();
        let named = names.filter_map(|name| directory.find(self.kind, name));
        let all = directory.resources(self.kind).filter(|_| self.wildcard);
        named.chain(all).map(|r| (r.name.clone(), r)).collect()
    }

    fn responses(
        &mut self,
        directory: &Directory,
        mut removed: BTreeSet<String>,
        answer_always: bool,
    ) -> Vec<DeltaDiscoveryResponse> {
        let wanted = self.wanted(directory);
        self.sent.retain(|name, _| {
            let keep = wanted.contains_key(name);
            if !keep {
                removed.insert(name.to_string());
            }
            keep
        });
        let empty = || DeltaDiscoveryResponse {
            type_url: self.kind.url().to_owned(),
            ..Default::default()
        };
        let mut responses = Vec::new();
        let mut response = empty();
        let mut len = 0;
        for (name, resource) in wanted {
            if self.sent.get(&name) == Some(&resource.version) {
                continue;
            }
            if len + resource.body.len() > RESPONSE_LEN && !response.resources.is_empty() {
                responses.push(std::mem::replace(&mut response, empty()));
                len = 0;
            }
            len += resource.body.len();
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

/// The names that a request subscribes to, but for the wildcard.
fn asked(request: &DeltaDiscoveryRequest) -> impl Iterator<Item = &str> {
    let names = request.resource_names_subscribe.iter();
    names.map(String::as_str).filter(|name| *name != WILDCARD)
}

fn encode(kind: ResourceType, resource: &Resource) -> ads::Resource {
    ads::Resource {
        version: resource.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: kind.url().to_owned(),
            value: resource.body.clone(),
        }),
        name: resource.name.to_string(),
        aliases: resource.aliases.clone(),
    }
}
