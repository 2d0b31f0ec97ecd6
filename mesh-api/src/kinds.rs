//! The mesh's own kinds of objects, as a cluster has them.

/// Their group.
pub const GROUP: &str = "nodemesh.dev";
/// The one version that is served and stored.
pub const VERSION: &str = "v1alpha1";

/// A kind and its plural.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnKind {
    /// As in a manifest.
    pub name: &'static str,
    /// As in the API server's paths.
    pub plural: &'static str,
}

const fn own(name: &'static str, plural: &'static str) -> OwnKind {
    OwnKind { name, plural }
}

/// All of them; each has objects in namespaces.
pub const OWN_KINDS: [OwnKind; 5] = [
    own("AuthorizationPolicy", "authorizationpolicies"),
    own("AuthenticationPolicy", "authenticationpolicies"),
    own("ServicePolicy", "servicepolicies"),
    own("WorkerBudget", "workerbudgets"),
    own("Revocation", "revocations"),
];
