//! Revocations: for the whole mesh, and of something.

use mesh_core::policy::MESH_NAMESPACE;

use crate::sources::manifests::Mistake;
use crate::sources::manifests::document::Found;
use crate::sources::manifests::locate::steps;

pub(super) fn check(found: &Found, mistakes: &mut Vec<Mistake>) {
    for placed in &found.revocations {
        let object = &placed.object;
        if object.namespace() != MESH_NAMESPACE {
            let what = format!(
                "a Revocation is for the whole mesh: it must be in namespace {MESH_NAMESPACE:?}"
            );
            let path = steps!["metadata", "namespace"];
            mistakes.push(placed.place.mistake(&path, what));
        }
        if object.spec.is_empty() {
            let what = "revokes nothing: give identities, nodes or serials";
            mistakes.push(placed.place.mistake(&steps!["spec"], what));
        }
    }
}
