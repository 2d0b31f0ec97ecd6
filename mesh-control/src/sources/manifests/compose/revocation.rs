//! What is revoked.

use mesh_core::identity::TrustDomain;
use mesh_core::revocation::Revocations;

use crate::sources::manifests::document::Found;
use crate::sources::manifests::locate::steps;

/// Everything that is revoked; warns of what can be nobody's.
pub(in crate::sources::manifests) fn compose(
    found: &mut Found,
    trust_domain: &TrustDomain,
) -> Revocations {
    let mut revocations = Revocations::default();
    for placed in &found.revocations {
        let spec = &placed.object.spec;
        for (index, id) in spec.identities.iter().flatten().enumerate() {
            if id.0.trust_domain() != trust_domain {
                let what = format!(
                    "{} is not the mesh's trust domain, {trust_domain}: nobody has this identity",
                    id.0.trust_domain()
                );
                let path = steps!["spec", "identities", index];
                found.warnings.push(placed.place.mistake(&path, what));
            }
            revocations.identities.insert(id.0.clone());
        }
        let nodes = spec.nodes.iter().flatten();
        revocations.nodes.extend(nodes.map(|name| name.0.clone()));
        let serials = spec.serials.iter().flatten();
        revocations
            .serials
            .extend(serials.map(|serial| serial.0.clone()));
    }
    revocations
}
