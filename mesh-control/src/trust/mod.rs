//! What nodes and workloads are to trust and what is revoked, as it is served: the signer's roots,
//! the manifests' `Revocation`s, and the enterprise's CRLs, put together on every change.

pub mod crl;

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_lc_rs::digest;
use mesh_api::convert::trust::to_wire;
use mesh_api::trust as wire;
use mesh_core::revocation::{NODE_MARK_LEN, NodeMark, Revocations};
use prost::Message;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::ca::TrustBundle;

/// What the serial numbers of all certificates begin with that are issued through a node: part of a
/// hash of its name, with its first bits such that a serial number is positive and never shorter.
#[must_use]
pub fn node_mark(node: &str) -> NodeMark {
    let hash = digest::digest(&digest::SHA256, node.as_bytes());
    let mut mark = [0; NODE_MARK_LEN];
    mark.copy_from_slice(&hash.as_ref()[..NODE_MARK_LEN]);
    mark[0] = mark[0] & 0x3f | 0x40;
    mark
}

/// Trust as it is served.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// What is revoked.
    pub revocations: Revocations,
    /// All of it, as nodes are told.
    pub message: wire::Trust,
}

impl Served {
    /// Puts it together.
    #[must_use]
    pub fn new(roots: &[CertificateDer<'static>], mut revocations: Revocations) -> Self {
        let marks = revocations.nodes.iter().map(|node| node_mark(node));
        revocations.marks = marks.collect();
        let mut message = wire::Trust {
            version: String::new(),
            roots: roots.iter().map(|root| root.to_vec()).collect(),
            revocations: Some(to_wire(&revocations)),
        };
        // Lists are sorted: the same in every replica and after every restart.
        let hash = digest::digest(&digest::SHA256, &message.encode_to_vec());
        let version = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}"));
        message.version = version.collect();
        Self {
            revocations,
            message,
        }
    }
}

/// What trust is put together of.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The signer's.
    pub roots: watch::Receiver<Arc<TrustBundle>>,
    /// The manifests'.
    pub revocations: watch::Receiver<Revocations>,
    /// The CRLs'.
    pub listed: watch::Receiver<crl::Listed>,
}

impl Sources {
    fn compose(&mut self) -> Served {
        let roots = self.roots.borrow_and_update().clone();
        let mut revocations = self.revocations.borrow_and_update().clone();
        revocations.listed = self.listed.borrow_and_update().clone();
        Served::new(roots.roots(), revocations)
    }

    /// What they say, now and after each change.
    ///
    /// # Panics
    /// Must be called in a tokio runtime.
    #[must_use]
    pub fn follow(mut self) -> watch::Receiver<Arc<Served>> {
        let (served, receiver) = watch::channel(Arc::new(self.compose()));
        tokio::spawn(async move {
            loop {
                // A source that has ended says nothing new.
                tokio::select! {
                    Ok(()) = self.roots.changed() => {}
                    Ok(()) = self.revocations.changed() => {}
                    Ok(()) = self.listed.changed() => {}
                    () = served.closed() => return,
                }
                let now = self.compose();
                if served.borrow().message != now.message {
                    report(&now);
                    served.send_replace(Arc::new(now));
                }
            }
        });
        receiver
    }
}

fn report(served: &Served) {
    let revoked = &served.revocations;
    let listed: usize = revoked.listed.values().map(BTreeSet::len).sum();
    tracing::info!(
        version = served.message.version,
        roots = served.message.roots.len(),
        identities = revoked.identities.len(),
        nodes = revoked.nodes.len(),
        serials = revoked.serials.len(),
        listed,
        "trust changes"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_nodes_apart_and_begin_a_positive_serial_number() {
        let (a, b) = (node_mark("node-a"), node_mark("node-b"));
        assert_ne!(a, b);
        assert_eq!(a, node_mark("node-a"));
        for mark in [a, b] {
            assert_eq!(mark[0] & 0xc0, 0x40);
        }
    }

    #[test]
    fn the_version_is_that_of_the_content() {
        let root = |n: u8| CertificateDer::from(vec![n]);
        let node = |name: &str| Revocations {
            nodes: [name.to_owned()].into(),
            ..Revocations::default()
        };
        let version = |served: Served| served.message.version;
        let first = version(Served::new(&[root(1)], node("a")));
        assert_eq!(first, version(Served::new(&[root(1)], node("a"))));
        assert_ne!(first, version(Served::new(&[root(2)], node("a"))));
        assert_ne!(first, version(Served::new(&[root(1)], node("b"))));
    }
}
