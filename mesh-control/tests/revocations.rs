//! Revocations in manifests: what they say, and each mistake with its field.

mod support {
    pub(crate) mod admission;
}

use std::path::PathBuf;

use mesh_control::sources::manifests::{Loaded, ManifestFault, parse};

fn text(namespace: &str, spec: &str) -> String {
    format!(
        "kind: Revocation\napiVersion: nodemesh.dev/v1alpha1\n\
         metadata: {{name: r, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// What an API server has against it, by our definitions.
fn refused(namespace: &str, spec: &str) -> Vec<String> {
    support::admission::mistakes(&support::admission::from_yaml(&text(namespace, spec)))
}

fn loaded(namespace: &str, spec: &str) -> Result<Loaded, ManifestFault> {
    let text = text(namespace, spec);
    let domain = "cluster.local".parse().unwrap();
    parse(&[(PathBuf::from("r.yaml"), text)], &domain)
}

#[test]
fn identities_nodes_and_serials_are_revoked() {
    let spec = "{identities: [\"spiffe://cluster.local/ns/shop/sa/cart\"], nodes: [node-a, node-b], \
                serials: [\"00:4F:a1\"]}";
    let Loaded {
        revocations,
        warnings,
        ..
    } = loaded("nodemesh-system", spec).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(refused("nodemesh-system", spec), [""; 0]);
    let identities: Vec<_> = revocations
        .identities
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(identities, ["spiffe://cluster.local/ns/shop/sa/cart"]);
    assert_eq!(Vec::from_iter(&revocations.nodes), ["node-a", "node-b"]);
    assert_eq!(Vec::from_iter(&revocations.serials), [&[0x4f, 0xa1]]);
}

#[test]
fn each_mistake_names_its_field() {
    for (namespace, spec, expected) in [
        (
            "nodemesh-system",
            "{}",
            "r.yaml:4: spec: revokes nothing: give identities, nodes or serials",
        ),
        (
            "nodemesh-system",
            "{nodes: []}",
            "r.yaml:4: spec: revokes nothing",
        ),
        (
            "default",
            "{nodes: [a]}",
            "r.yaml:3: metadata.namespace: a Revocation is for the whole mesh",
        ),
        (
            "nodemesh-system",
            "{serials: [xyz]}",
            "spec.serials[0]: \"xyz\" is not a serial number",
        ),
        (
            "nodemesh-system",
            "{identities: [cart]}",
            "spec.identities[0]",
        ),
        ("nodemesh-system", "{pods: [cart]}", "unknown field `pods`"),
    ] {
        let error = loaded(namespace, spec).unwrap_err().to_string();
        assert!(error.contains(expected), "{spec}: {error}");
        assert_ne!(
            refused(namespace, spec),
            [""; 0],
            "would be written: {spec}"
        );
    }
}

#[test]
fn an_identity_that_nobody_can_have_is_a_warning() {
    let spec = "{identities: [\"spiffe://other/ns/shop/sa/cart\"]}";
    let warnings = loaded("nodemesh-system", spec).unwrap().warnings;
    assert_eq!(warnings[0].field, "spec.identities[0]");
}
