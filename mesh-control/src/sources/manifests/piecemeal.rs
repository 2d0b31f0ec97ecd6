//! Objects that come one by one, as from an API server: each is read and checked by itself, and no
//! mistake in one keeps out another.
//!
//! What can't be read must not open anything. The last version that could be read stays; where there is
//! none, something stands in for it: for a policy that may deny, a denial of all that it could
//! deny; for an authentication scope, a strict one; for a revocation, those of its entries that can be
//! read; for a namespace, one that enrols nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::path::Path;

use mesh_core::identity::TrustDomain;
use mesh_core::model::Mesh;
use mesh_core::policy::MESH_NAMESPACE;
use mesh_core::revocation::Revocations;
use serde_json::{Value, json};

use super::check::{self, ended, namespace_of, pod_addresses};
use super::compose::{compose, revocation, scope};
use super::document::{Found, take};
use super::schema::policy::API_VERSION;
use super::{Mistake, membership};
use crate::registry::Scope;

/// One object as it is held.
#[derive(Clone, Debug, Default)]
pub(in crate::sources) struct Piece {
    /// What is in force of it.
    found: Found,
    /// What is wrong with its present version.
    pub(in crate::sources) mistakes: Vec<Mistake>,
}

impl Piece {
    /// Reads an object: `kind`, `metadata`, `spec` and what else there is of interest. `label` stands
    /// for it in mistakes; `earlier` is its last version.
    pub(in crate::sources) fn read(
        label: &str,
        object: &Value,
        earlier: Option<&Self>,
        trust_domain: &TrustDomain,
    ) -> Self {
        let mistakes = match read(label, object, trust_domain) {
            Ok(found) => {
                let mistakes = Vec::new();
                return Self { found, mistakes };
            }
            Err(mistakes) => mistakes,
        };
        let found = match earlier {
            Some(earlier) => earlier.found.clone(),
            None => stand_in(label, object, trust_domain),
        };
        Self { found, mistakes }
    }

    /// Whom its present version is for, if it can be read and nodes tell of their pods' workers whether
    /// they have it.
    pub(in crate::sources) fn scope(&self) -> Option<Scope> {
        match self.mistakes.is_empty() {
            true => scope(&self.found),
            false => None,
        }
    }
}

/// Several objects, on their way to become a model.
#[derive(Debug, Default)]
pub(in crate::sources) struct Pieces(Found);

impl Pieces {
    /// Puts one more in.
    pub(in crate::sources) fn add(&mut self, piece: &Piece) {
        self.0.absorb(&piece.found);
    }

    /// Makes the model of all that fits together; and tells what doesn't, or not yet.
    pub(in crate::sources) fn compose(mut self, trust_domain: &TrustDomain) -> Composed {
        let found = &mut self.0;
        newest_has_address(found);
        first_service_policy_holds(found);
        check::check(found);
        let mut told = mem::take(&mut found.mistakes);
        // Whether such a pod is enrolled is not known: it must not pass for one that isn't.
        let namespaces = found.namespaces.iter();
        let known: BTreeSet<_> = namespaces
            .map(|n| n.object.metadata.name.0.clone())
            .collect();
        found
            .pods
            .retain(|pod| known.contains(namespace_of(&pod.object.metadata)));
        let (mesh, mistakes) = compose(found, trust_domain);
        told.extend(mistakes);
        let revocations = revocation::compose(found, trust_domain);
        // All of them are about what isn't there, or not yet.
        let warnings = found.warnings.drain(..);
        told.extend(warnings.map(|warning| Mistake {
            dangling: true,
            ..warning
        }));
        Composed {
            mesh,
            revocations,
            told,
        }
    }
}

/// What several objects say together.
#[derive(Debug)]
pub(in crate::sources) struct Composed {
    pub(in crate::sources) mesh: Mesh,
    pub(in crate::sources) revocations: Revocations,
    /// What is wrong, or does not fit together.
    pub(in crate::sources) told: Vec<Mistake>,
}

/// Reads one object and checks what can be checked without others.
fn read(label: &str, object: &Value, trust_domain: &TrustDomain) -> Result<Found, Vec<Mistake>> {
    let mut found = Found::default();
    take(Path::new(label), object, &mut found);
    check::check(&mut found);
    found.mistakes.retain(|mistake| !mistake.dangling);
    if found.mistakes.is_empty() {
        let (_, mistakes) = compose(&mut found, trust_domain);
        found.mistakes = mistakes;
    }
    found.warnings.clear();
    match found.mistakes.is_empty() {
        true => Ok(found),
        false => Err(found.mistakes),
    }
}

fn stand_in(label: &str, object: &Value, trust_domain: &TrustDomain) -> Found {
    let spec = &object["spec"];
    let stand_ins = match object["kind"].as_str() {
        // What nothing allows is refused.
        Some("AuthorizationPolicy") if spec["action"] == "Allow" => Vec::new(),
        Some("AuthorizationPolicy") => {
            let directions = match spec["direction"].as_str() {
                Some(known @ ("Inbound" | "Outbound")) => vec![known],
                _ => vec!["Inbound", "Outbound"],
            };
            directions
                .into_iter()
                .map(|direction| {
                    let denial = json!({"direction": direction, "action": "Deny", "rules": [{}]});
                    (direction.to_lowercase(), denial)
                })
                .collect()
        }
        Some("AuthenticationPolicy") => vec![("inbound".to_owned(), json!({"mode": "Strict"}))],
        Some("Revocation") => return readable_entries(label, object, trust_domain),
        Some("Namespace") => {
            let mut plain = object.clone();
            if let Some(labels) = plain["metadata"]["labels"].as_object_mut() {
                for label in membership::LABELS {
                    labels.remove(label);
                }
            }
            return read(label, &plain, trust_domain).unwrap_or_default();
        }
        _ => Vec::new(),
    };
    let mut found = Found::default();
    for (direction, spec) in stand_ins {
        found.absorb(&for_target(label, object, &direction, &spec, trust_domain));
    }
    found
}

/// What can be read of an unreadable revocation, entry by entry.
fn readable_entries(label: &str, unread: &Value, trust_domain: &TrustDomain) -> Found {
    let mut found = Found::default();
    for (field, entries) in unread["spec"].as_object().into_iter().flatten() {
        for (index, entry) in entries.as_array().into_iter().flatten().enumerate() {
            let mut object = unread.clone();
            let name = unread["metadata"]["name"].as_str().unwrap_or_default();
            object["metadata"]["name"] = format!("{name}.unreadable-{field}-{index}").into();
            object["apiVersion"] = API_VERSION.into();
            object["spec"] = json!({(field): [entry]});
            if let Ok(one) = read(label, &object, trust_domain) {
                found.absorb(&one);
            }
        }
    }
    found
}

/// A policy for whom the unreadable one is for, as far as that can be read; else for its namespace, or,
/// from the mesh's own, for the mesh.
fn for_target(
    label: &str,
    unread: &Value,
    direction: &str,
    spec: &Value,
    trust_domain: &TrustDomain,
) -> Found {
    let metadata = &unread["metadata"];
    let namespace = &metadata["namespace"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let own = unread["spec"].get("target").cloned();
    let widest = (namespace == MESH_NAMESPACE).then(|| json!({"mesh": true}));
    [own, widest, None]
        .into_iter()
        .find_map(|target| {
            let mut spec = spec.clone();
            if let Some(target) = target {
                spec["target"] = target;
            }
            let object = json!({
                "apiVersion": API_VERSION,
                "kind": unread["kind"],
                "metadata": {"namespace": namespace, "name": format!("{name}.unreadable-{direction}")},
                "spec": spec,
            });
            read(label, &object, trust_domain).ok()
        })
        .unwrap_or_default()
}

/// An address that two pods have is the newer one's: it was given anew while the news of the older pod's
/// end is on its way.
fn newest_has_address(found: &mut Found) {
    let mut newest: BTreeMap<IpAddr, (Option<String>, usize)> = BTreeMap::new();
    let mut lost: Vec<(usize, IpAddr)> = Vec::new();
    for (index, pod) in found.pods.iter().enumerate() {
        let pod = &pod.object;
        if ended(pod) || pod.spec.host_network {
            continue;
        }
        // RFC 3339 in UTC, so that texts compare as times do.
        let born = (pod.metadata.creation_timestamp.clone(), index);
        for (address, _) in pod_addresses(pod) {
            match newest.get_mut(&address) {
                Some(holder) if *holder < born => {
                    lost.push((mem::replace(holder, born.clone()).1, address));
                }
                Some(_) => lost.push((index, address)),
                None => {
                    newest.insert(address, born.clone());
                }
            }
        }
    }
    for (index, address) in lost {
        found.pods[index].object.status.release(address);
    }
}

/// Of several policies for one service the first by name is in force; the others are told to be too many.
fn first_service_policy_holds(found: &mut Found) {
    let mut seen = BTreeSet::new();
    found.service_policies.retain(|placed| {
        let object = &placed.object;
        let service = (object.namespace().to_owned(), object.spec.service.0.clone());
        let first = seen.insert(service);
        if !first {
            let what = "its service has another ServicePolicy, whose name comes first";
            let at = ["spec".into(), "service".into()];
            found.mistakes.push(placed.place.mistake(&at, what));
        }
        first
    });
}
