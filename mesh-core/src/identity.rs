//! Identities: SPIFFE IDs of workloads and of nodes.
//!
//! Source: the SPIFFE ID specification, and the path form that Istio's ambient mesh uses.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE ID, in bytes (SPIFFE ID specification, §2.4).
const MAX_ID_LEN: usize = 2048;

/// Why a text is no identity of this mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Longer than the specification allows.
    #[error("SPIFFE ID has {0} bytes, more than the 2048 the specification allows")]
    TooLong(usize),
    /// Another scheme than `spiffe`.
    #[error("{0:?} does not begin with spiffe://")]
    Scheme(String),
    /// A trust domain with characters it can't have, or none.
    #[error("{0:?} is not a trust domain: lower-case letters, digits, '.', '-' and '_' only")]
    TrustDomain(String),
    /// Not the path of the kind of identity that was asked for.
    #[error("the path of {0:?} is not {1}")]
    Path(String, &'static str),
    /// A path segment with characters it can't have.
    #[error("{0:?} is not a path segment of a SPIFFE ID")]
    Segment(String),
}

/// A SPIFFE trust domain, such as `cluster.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The text, without scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
            return Err(IdentityError::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn check_segment(text: &str) -> Result<Arc<str>, IdentityError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if text.is_empty() || text == "." || text == ".." || !text.bytes().all(allowed) {
        return Err(IdentityError::Segment(text.to_owned()));
    }
    Ok(text.into())
}

fn split(id: &str) -> Result<(TrustDomain, &str), IdentityError> {
    if id.len() > MAX_ID_LEN {
        return Err(IdentityError::TooLong(id.len()));
    }
    let rest = id
        .strip_prefix("spiffe://")
        .ok_or_else(|| IdentityError::Scheme(id.to_owned()))?;
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    Ok((domain.parse()?, path))
}

/// A workload's identity: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl Identity {
    /// Puts an identity together.
    ///
    /// # Errors
    /// A namespace or service account that can't stand in a SPIFFE ID.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        Ok(Self {
            trust_domain,
            namespace: check_segment(namespace)?,
            service_account: check_segment(service_account)?,
        })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(id: &str) -> Result<Self, IdentityError> {
        let (trust_domain, path) = split(id)?;
        let mut parts = path.split('/');
        match (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(trust_domain, namespace, account)
            }
            _ => Err(IdentityError::Path(
                id.to_owned(),
                "/ns/<namespace>/sa/<service-account>",
            )),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            namespace,
            service_account,
        } = self;
        write!(
            f,
            "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
        )
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A node agent's identity: `spiffe://<trust-domain>/nodemesh/node/<node>`. Its path can't
/// be a workload's, so neither can pass for the other.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIdentity {
    trust_domain: TrustDomain,
    node: Arc<str>,
}

impl NodeIdentity {
    /// Puts a node's identity together.
    ///
    /// # Errors
    /// A node name that can't stand in a SPIFFE ID.
    pub fn new(trust_domain: TrustDomain, node: &str) -> Result<Self, IdentityError> {
        Ok(Self {
            trust_domain,
            node: check_segment(node)?,
        })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }
}

impl FromStr for NodeIdentity {
    type Err = IdentityError;

    fn from_str(id: &str) -> Result<Self, IdentityError> {
        let (trust_domain, path) = split(id)?;
        path.strip_prefix("nodemesh/node/")
            .ok_or_else(|| IdentityError::Path(id.to_owned(), "/nodemesh/node/<node>"))
            .and_then(|node| Self::new(trust_domain, node))
    }
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/nodemesh/node/{}",
            self.trust_domain, self.node
        )
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_and_node_identities_round_trip_and_never_mix() {
        let workload = "spiffe://cluster.local/ns/shop/sa/cart";
        let node = "spiffe://cluster.local/nodemesh/node/node-a";
        assert_eq!(workload.parse::<Identity>().unwrap().to_string(), workload);
        assert_eq!(node.parse::<NodeIdentity>().unwrap().to_string(), node);
        assert!(node.parse::<Identity>().is_err());
        assert!(workload.parse::<NodeIdentity>().is_err());
    }

    #[test]
    fn what_is_not_an_identity_says_why() {
        for (text, part) in [
            ("http://a/ns/b/sa/c", "spiffe://"),
            ("spiffe://Upper/ns/b/sa/c", "trust domain"),
            ("spiffe:///ns/b/sa/c", "trust domain"),
            ("spiffe://a/ns/b/sa/c/d", "path"),
            ("spiffe://a/ns/b/sa/", "segment"),
            ("spiffe://a/ns/../sa/c", "segment"),
            ("spiffe://a/ns/b%20/sa/c", "segment"),
        ] {
            let error = text.parse::<Identity>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let long = format!("spiffe://a/ns/{}/sa/c", "x".repeat(3000));
        assert!(matches!(
            long.parse::<Identity>(),
            Err(IdentityError::TooLong(_))
        ));
    }
}
