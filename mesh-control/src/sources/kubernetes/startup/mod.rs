//! The start-up taint: nodes are made with it, and it is taken off once a node's agent is ready, so that
//! no pod is scheduled there before.
//!
//! It is never put back. On a node whose agent is gone the CNI plugin refuses new pods by itself; and
//! control, which can be the one that is cut off, would taint every node at once.

mod remover;
mod tainted;

pub(super) use remover::Remover;
pub(super) use tainted::{Nodes, Tainted};

/// Key of the taint, whatever its effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaintKey(String);

/// A key that can't be the start-up taint's.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// It is no qualified name.
    #[error("{0:?}: give the key of a taint, with a domain: nodemesh.dev/agent-not-ready")]
    NotQualified(String),
    /// Others keep it.
    #[error(
        "{0:?} is Kubernetes' own: control must not take off what the cluster puts there; give a key such as nodemesh.dev/agent-not-ready"
    )]
    Kubernetes(String),
}

impl TaintKey {
    /// As the taint has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for TaintKey {
    type Err = KeyFault;

    fn from_str(text: &str) -> Result<Self, KeyFault> {
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let good = |part: &str| {
            let ends = [part.chars().next(), part.chars().next_back()];
            part.chars().all(inner)
                && ends
                    .iter()
                    .all(|c| c.is_some_and(|c| c.is_ascii_alphanumeric()))
        };
        let parts = text.split_once('/');
        let Some((domain, _)) = parts.filter(|(domain, name)| good(domain) && good(name)) else {
            return Err(KeyFault::NotQualified(text.to_owned()));
        };
        let own = ["kubernetes.io", "k8s.io"];
        let is_own = |own: &&str| *domain == **own || domain.ends_with(&format!(".{own}"));
        if own.iter().any(is_own) {
            return Err(KeyFault::Kubernetes(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::TaintKey;

    #[test]
    fn a_key_is_a_qualified_name_that_is_not_kubernetes() {
        for good in ["nodemesh.dev/agent-not-ready", "example.com/A_b.c"] {
            assert_eq!(good.parse::<TaintKey>().unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", "with a domain"),
            ("agent-not-ready", "with a domain"),
            ("nodemesh.dev/", "with a domain"),
            ("nodemesh.dev/a/b", "with a domain"),
            ("nodemesh.dev/a'b", "with a domain"),
            ("node.kubernetes.io/not-ready", "Kubernetes' own"),
            ("k8s.io/x", "Kubernetes' own"),
        ] {
            let said = bad.parse::<TaintKey>().unwrap_err().to_string();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
