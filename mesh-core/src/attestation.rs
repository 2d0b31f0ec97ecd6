//! Which identities a node may ask certificates for: those of enrolled pods that the
//! orchestrator placed on it, and no others.

use std::sync::Arc;

use crate::identity::{Identity, NodeIdentity};
use crate::model::{Mesh, Workload};

/// Why a node gets no certificate for an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestationRefusal {
    /// The identity is of another trust domain than the node.
    #[error("{identity} is not of the trust domain of node {node}")]
    TrustDomain {
        /// What was asked for.
        identity: Identity,
        /// The caller.
        node: String,
    },
    /// Discovery places no pod of that identity on the node.
    #[error("no pod of {identity} is bound to node {node}")]
    NoPodOnNode {
        /// What was asked for.
        identity: Identity,
        /// The caller.
        node: String,
    },
    /// There is such a pod, but it is not enrolled.
    #[error(
        "pod {pod} of {identity} on node {node} is not enrolled: label its namespace nodemesh.dev/enroll=true"
    )]
    NotEnrolled {
        /// What was asked for.
        identity: Identity,
        /// The caller.
        node: String,
        /// The pod's name.
        pod: String,
    },
}

/// Whether `node`, as its certificate names it, may have a certificate for `identity`; the
/// pod that entitles it.
///
/// # Errors
/// Why not.
pub fn attest<'a>(
    mesh: &'a Mesh,
    node: &NodeIdentity,
    identity: &Identity,
) -> Result<&'a Arc<Workload>, AttestationRefusal> {
    let (identity_asked, name) = (|| identity.clone(), || node.node().to_owned());
    if identity.trust_domain() != node.trust_domain() {
        return Err(AttestationRefusal::TrustDomain {
            identity: identity_asked(),
            node: name(),
        });
    }
    let mut bound = mesh
        .on_node(node.node())
        .filter(|w| w.identity == *identity)
        .peekable();
    let Some(first) = bound.peek().copied() else {
        return Err(AttestationRefusal::NoPodOnNode {
            identity: identity_asked(),
            node: name(),
        });
    };
    bound
        .find(|w| w.enrolled())
        .ok_or_else(|| AttestationRefusal::NotEnrolled {
            identity: identity_asked(),
            node: name(),
            pod: first.name.clone(),
        })
}
