//! One node's subscription, as a pure state machine: requests and states of the mesh in,
//! responses out.
//!
//! Source: the xDS protocol's incremental variant. A stream that begins without names is a
//! wildcard subscription; `*` asks for one by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::ADDRESS_TYPE_URL;
use mesh_api::ads::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use crate::registry::{Directory, Resource};

/// Most names that one stream may subscribe to.
const MAX_NAMES: usize = 65_536;
/// A response is cut after this many bytes of resources, well below the 4 MiB that gRPC
/// clients take by default.
const RESPONSE_LEN: usize = 1024 * 1024;
const WILDCARD: &str = "*";

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionFault {
    /// A type of resource that is not served.
    #[error("resources of type {0:?} are not served here; {ADDRESS_TYPE_URL} is")]
    TypeUrl(String),
    /// More names than a stream may have.
    #[error("a stream can subscribe to at most 65536 names; use the wildcard")]
    TooManyNames,
}

/// What a stream has subscribed to and what it was sent.
#[derive(Debug, Default)]
pub struct Session {
    started: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    /// Name → version of what the client holds.
    sent: BTreeMap<Arc<str>, Arc<str>>,
    responses: u64,
}

impl Session {
    /// Takes a request and says what to answer: nothing for a mere ACK or NACK.
    ///
    /// # Errors
    /// A request that ends the stream.
    pub fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        directory: &Directory,
    ) -> Result<Vec<DeltaDiscoveryResponse>, SessionFault> {
        if request.type_url != ADDRESS_TYPE_URL {
            return Err(SessionFault::TypeUrl(request.type_url.clone()));
        }
        let first = !std::mem::replace(&mut self.started, true);
        let asked: BTreeSet<&str> = request
            .resource_names_subscribe
            .iter()
            .map(String::as_str)
            .collect();
        if first {
            self.wildcard = asked.is_empty();
            self.sent = request
                .initial_resource_versions
                .iter()
                .map(|(name, version)| (name.as_str().into(), version.as_str().into()))
                .collect();
        }
        self.wildcard |= asked.contains(WILDCARD);
        for name in asked.iter().filter(|name| **name != WILDCARD) {
            self.names.insert((*name).to_owned());
            // Asking again for a name gets it again, whatever was sent before; at the start
            // of a stream the client has said what it holds.
            if !first && let Some(resource) = directory.find(name) {
                self.sent.remove(&resource.name);
            }
        }
        self.unsubscribe(&request.resource_names_unsubscribe, directory);
        if self.names.len() > MAX_NAMES {
            return Err(SessionFault::TooManyNames);
        }
        if !first && asked.is_empty() {
            return Ok(Vec::new());
        }
        // A name that leads nowhere is reported as removed, so that the client need not wait.
        let missing = asked
            .iter()
            .filter(|name| **name != WILDCARD && directory.find(name).is_none())
            .map(|name| (*name).to_owned())
            .collect();
        Ok(self.responses(directory, missing, true))
    }

    /// Says what to send after the mesh has changed.
    pub fn changed(&mut self, directory: &Directory) -> Vec<DeltaDiscoveryResponse> {
        if !self.started {
            return Vec::new();
        }
        self.responses(directory, BTreeSet::new(), false)
    }

    fn unsubscribe(&mut self, names: &[String], directory: &Directory) {
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
            } else {
                self.names.remove(name);
            }
        }
        // The client forgets by itself what it no longer asks for.
        if !names.is_empty() && !self.wildcard {
            let wanted = self.wanted(directory);
            self.sent.retain(|name, _| wanted.contains_key(name));
        }
    }

    fn wanted<'a>(&self, directory: &'a Directory) -> BTreeMap<Arc<str>, &'a Arc<Resource>> {
        let named = self.names.iter().filter_map(|name| directory.find(name));
        let all = directory.resources().filter(|_| self.wildcard);
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
        let mut responses = Vec::new();
        let mut response = DeltaDiscoveryResponse::default();
        let mut len = 0;
        for (name, resource) in wanted {
            if self.sent.get(&name) == Some(&resource.version) {
                continue;
            }
            if len + resource.body.len() > RESPONSE_LEN && !response.resources.is_empty() {
                responses.push(std::mem::take(&mut response));
                len = 0;
            }
            len += resource.body.len();
            response.resources.push(encode(resource));
            self.sent.insert(name, resource.version.clone());
        }
        response.removed_resources = removed.into_iter().collect();
        let empty = response.resources.is_empty() && response.removed_resources.is_empty();
        if !empty || (answer_always && responses.is_empty()) {
            responses.push(response);
        }
        for response in &mut responses {
            self.responses += 1;
            response.nonce = self.responses.to_string();
            ADDRESS_TYPE_URL.clone_into(&mut response.type_url);
        }
        responses
    }
}

fn encode(resource: &Resource) -> ads::Resource {
    ads::Resource {
        version: resource.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: ADDRESS_TYPE_URL.to_owned(),
            value: resource.body.clone(),
        }),
        name: resource.name.to_string(),
        aliases: resource.aliases.clone(),
    }
}
