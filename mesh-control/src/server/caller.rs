//! Who calls: every service but joining answers nodes only, by their certificates.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::certificate::{Leaf, LeafFault};
use mesh_core::identity::{NodeIdentity, TrustDomain};
use tonic::{Request, Status};

use crate::audit::{Audit, Event};

/// What a connection knows of its peer. TLS has verified the chain, the time and the right
/// to be a client; what the leaf says is checked per call.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// Its certificate, if it showed one.
    pub leaf: Option<Arc<Result<Leaf, LeafFault>>>,
}

/// A node whose certificate has been checked.
#[derive(Clone, Debug)]
pub struct NodeCaller {
    /// Which node.
    pub identity: NodeIdentity,
    /// When its certificate ends, in seconds since the epoch.
    pub not_after_s: i64,
}

/// Lets nodes in, and nobody else.
#[derive(Debug)]
pub struct Gate {
    /// The trust domain nodes must be of.
    pub trust_domain: TrustDomain,
    /// Where refusals go.
    pub audit: Arc<Audit>,
}

impl Gate {
    /// The node that makes this call.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a certificate or with one that has expired, PERMISSION_DENIED
    /// with one that is not a node's.
    pub fn node<T>(&self, request: &Request<T>) -> Result<NodeCaller, Status> {
        let peer = request.extensions().get::<Peer>();
        self.admit(peer, crate::now_s()).inspect_err(|status| {
            let address = peer.map_or_else(|| "unknown".to_owned(), |p| p.address.to_string());
            self.audit
                .record(Event::CallerRefused, "-", address, status.message());
        })
    }

    fn admit(&self, peer: Option<&Peer>, now_s: i64) -> Result<NodeCaller, Status> {
        let Some(leaf) = peer.and_then(|peer| peer.leaf.as_deref()) else {
            return Err(Status::unauthenticated(
                "this call needs a node's client certificate, and the connection has none; join first",
            ));
        };
        let leaf = leaf.as_ref().map_err(|fault| {
            Status::unauthenticated(format!("the client certificate is unusable: {fault}"))
        })?;
        if leaf.not_after_s <= now_s {
            return Err(Status::unauthenticated(
                "the client certificate has expired since the connection was made; connect again with the renewed one",
            ));
        }
        let identity = leaf.node(&self.trust_domain).map_err(|fault| {
            let uris = leaf.uris.join(", ");
            Status::permission_denied(format!(
                "the client certificate ({uris}) is not a node's: {fault}"
            ))
        })?;
        Ok(NodeCaller {
            identity,
            not_after_s: leaf.not_after_s,
        })
    }
}
