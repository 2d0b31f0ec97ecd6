//! Terms that name peers by more than their address.

use std::collections::HashMap;

use super::super::Peer;
use super::super::clause::Condition;
use super::said::Said;
use crate::identity::Identity;
use crate::model::ServiceKey;

/// Terms by one of the attributes they ask for.
#[derive(Default)]
pub(super) struct Attributed(HashMap<Attribute, Vec<(Condition, Said)>>);

#[derive(PartialEq, Eq, Hash)]
enum Attribute {
    Identity(Identity),
    Service(ServiceKey),
    Label(String, String),
    Namespace(String),
}

impl Attributed {
    pub(super) fn new(terms: Vec<(Condition, Said)>) -> Self {
        let mut all = Self::default();
        for (condition, said) in terms {
            let label = condition.labels.first_key_value();
            let label = label.map(|(key, value)| Attribute::Label(key.clone(), value.clone()));
            let namespace = condition.namespace.as_deref().map(str::to_owned);
            let identity = condition.identity.clone().map(Attribute::Identity);
            let attribute = identity
                .or(condition.service.clone().map(Attribute::Service))
                .or(label)
                .or(namespace.map(Attribute::Namespace));
            // A term without any of these is by address.
            if let Some(attribute) = attribute {
                all.0.entry(attribute).or_default().push((condition, said));
            }
        }
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is said of a peer.
    pub(super) fn each(&self, peer: &Peer<'_>, mut visit: impl FnMut(&Said)) {
        if self.is_empty() {
            return;
        }
        let namespace = peer.identity.map(|id| id.namespace().to_owned());
        let services = peer.services.iter().cloned().map(Attribute::Service);
        let labels = peer.labels.iter();
        let labels = labels.map(|(key, value)| Attribute::Label(key.clone(), value.clone()));
        let identity = peer.identity.cloned().map(Attribute::Identity);
        let attributes = identity
            .into_iter()
            .chain(namespace.map(Attribute::Namespace))
            .chain(services.collect::<Vec<_>>())
            .chain(labels);
        for term in attributes
            .filter_map(|attribute| self.0.get(&attribute))
            .flatten()
        {
            if term.0.holds(peer, peer.address) {
                visit(&term.1);
            }
        }
    }
}
