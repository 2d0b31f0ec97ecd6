//! What the API server has said, of all kinds: pure, so that any order of events can be tried.

use std::collections::BTreeMap;
use std::path::Path;

use aws_lc_rs::digest;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use mesh_core::identity::TrustDomain;
use serde_json::Value;

use super::kind::Kind;
use super::status::Reported;
use crate::sources::manifests::{Composed, Mistake, Piece, Pieces};

/// Namespace, empty where the kind has none, and name.
type Key = (String, String);

/// One object.
#[derive(Clone, Debug)]
struct Held {
    uid: Option<String>,
    /// SHA-256 of what the mesh reads of it: most changes of pods and nodes are of something else.
    digest: [u8; 32],
    piece: Piece,
    /// Of the mesh's own kinds.
    written: Option<Written>,
}

/// What the status of an object is made and compared with.
#[derive(Clone, Debug)]
struct Written {
    generation: Option<i64>,
    status: Value,
    /// Number of the first state of the mesh that had what it says.
    since: Option<u64>,
}

impl Held {
    fn same(&self, other: &Self) -> bool {
        self.uid == other.uid && self.digest == other.digest
    }
}

/// The objects of one kind.
#[derive(Debug, Default)]
struct OfKind {
    /// They have been listed as a whole.
    listed: bool,
    objects: BTreeMap<Key, Held>,
    /// A list that is under way: what there was stays until it is whole.
    listing: Option<BTreeMap<Key, Held>>,
}

/// The objects of all kinds.
#[derive(Debug)]
pub(super) struct Objects {
    trust_domain: TrustDomain,
    kinds: BTreeMap<Kind, OfKind>,
}

impl Objects {
    pub(super) fn new(kinds: &[Kind], trust_domain: TrustDomain) -> Self {
        let kinds = kinds.iter().map(|kind| (*kind, OfKind::default()));
        Self {
            trust_domain,
            kinds: kinds.collect(),
        }
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Kinds that have not been listed yet. Nothing may be served before there are none: without
    /// policies the mesh would seem to have none.
    pub(super) fn missing(&self) -> impl Iterator<Item = Kind> {
        let kinds = self.kinds.iter();
        kinds.filter(|(_, of)| !of.listed).map(|(kind, _)| *kind)
    }

    /// Takes an event. Returns whether anything is another way now.
    pub(super) fn apply(&mut self, kind: Kind, event: Event<DynamicObject>) -> bool {
        let Some(of) = self.kinds.get_mut(&kind) else {
            return false;
        };
        match event {
            Event::Init => {
                of.listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(object) => {
                let (key, held) = hold(kind, object, &of.objects, &self.trust_domain);
                of.listing.get_or_insert_default().insert(key, held);
                false
            }
            Event::InitDone => {
                let Some(listing) = of.listing.take() else {
                    return false;
                };
                let same = listing.len() == of.objects.len()
                    && listing.iter().all(|(key, new)| {
                        let old = of.objects.get(key);
                        old.is_some_and(|old| old.same(new))
                    });
                let news = !same || !of.listed;
                of.objects = listing;
                of.listed = true;
                news
            }
            Event::Apply(object) => {
                let (key, held) = hold(kind, object, &of.objects, &self.trust_domain);
                let before = of.objects.get(&key);
                let news = before.is_none_or(|before| !before.same(&held));
                of.objects.insert(key, held);
                news
            }
            Event::Delete(object) => {
                let (key, uid) = (key(&object), object.metadata.uid);
                // Of an earlier object of this name there may be late news.
                let meant = of.objects.get(&key).is_some_and(|held| held.uid == uid);
                meant && of.objects.remove(&key).is_some()
            }
        }
    }

    /// The mesh's own objects with what is wrong with each, of all that is told.
    pub(super) fn reported(&self, told: &[Mistake]) -> Vec<Reported> {
        let mut by_label: BTreeMap<&Path, Vec<Mistake>> = BTreeMap::new();
        for mistake in told {
            by_label
                .entry(&mistake.file)
                .or_default()
                .push(mistake.clone());
        }
        let objects = self
            .kinds
            .iter()
            .flat_map(|(kind, of)| of.objects.iter().map(move |(key, held)| (*kind, key, held)));
        objects
            .filter_map(|(kind, key, held)| {
                let written = held.written.as_ref()?;
                let label = label(kind, key);
                let mistakes = by_label.get(Path::new(&label));
                Some(Reported {
                    kind,
                    namespace: key.0.clone(),
                    name: key.1.clone(),
                    uid: held.uid.clone(),
                    generation: written.generation,
                    status: written.status.clone(),
                    mistakes: mistakes.cloned().unwrap_or_default(),
                    scope: held.piece.scope(),
                    since: written.since,
                })
            })
            .collect()
    }

    /// What is held now is in the state of this number, unless it was in an earlier one already.
    pub(super) fn served(&mut self, number: u64) {
        let objects = self
            .kinds
            .values_mut()
            .flat_map(|of| of.objects.values_mut());
        for written in objects.filter_map(|held| held.written.as_mut()) {
            written.since.get_or_insert(number);
        }
    }

    /// The model of all of it, and what is wrong or does not fit together.
    pub(super) fn compose(&self) -> Composed {
        let mut pieces = Pieces::default();
        let mut told = Vec::new();
        for held in self.kinds.values().flat_map(|of| of.objects.values()) {
            pieces.add(&held.piece);
            told.extend_from_slice(&held.piece.mistakes);
        }
        let mut composed = pieces.compose(&self.trust_domain);
        told.append(&mut composed.told);
        told.sort();
        told.dedup();
        Composed { told, ..composed }
    }
}

fn key(object: &DynamicObject) -> Key {
    let metadata = &object.metadata;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    (text(&metadata.namespace), text(&metadata.name))
}

/// Reads an object, unless what it says is held already.
fn hold(
    kind: Kind,
    object: DynamicObject,
    before: &BTreeMap<Key, Held>,
    trust_domain: &TrustDomain,
) -> (Key, Held) {
    let (key, uid) = (key(&object), object.metadata.uid.clone());
    let written = kind.is_own().then(|| Written {
        generation: object.metadata.generation,
        status: object.data["status"].clone(),
        since: None,
    });
    let manifest = kind.manifest(object);
    let digest = digest(&manifest);
    let earlier = before.get(&key).filter(|held| held.uid == uid);
    if let Some(same) = earlier.filter(|held| held.digest == digest) {
        let piece = same.piece.clone();
        let since = same.written.as_ref().and_then(|written| written.since);
        let written = written.map(|written| Written { since, ..written });
        let held = Held {
            uid,
            digest,
            piece,
            written,
        };
        return (key, held);
    }
    let label = label(kind, &key);
    let earlier = earlier.map(|held| &held.piece);
    let piece = Piece::read(&label, &manifest, earlier, trust_domain);
    let held = Held {
        uid,
        digest,
        piece,
        written,
    };
    (key, held)
}

/// What stands for an object in mistakes.
fn label(kind: Kind, (namespace, name): &Key) -> String {
    match namespace.as_str() {
        "" => format!("{} {name}", kind.name),
        namespace => format!("{} {namespace}/{name}", kind.name),
    }
}

fn digest(manifest: &Value) -> [u8; 32] {
    let hash = digest::digest(&digest::SHA256, manifest.to_string().as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.as_ref());
    bytes
}
