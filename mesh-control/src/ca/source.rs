//! Where signers are: what the operator names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::signer::KeySource;

/// Where a single signer is, with its key in a file.
#[derive(Clone, Copy, Debug)]
pub struct SignerFiles<'a> {
    /// PEM: the intermediate first, then what leads to the root.
    pub ca_cert: &'a Path,
    /// PEM: the intermediate's private key.
    pub ca_key: &'a Path,
    /// PEM: the root or roots that nodes and workloads trust.
    pub root: &'a Path,
}

/// Where roots and intermediates are.
#[derive(Clone, Debug)]
pub struct SignerSources {
    /// PEM: the root or roots that nodes and workloads trust.
    pub root: PathBuf,
    /// What signs for nodes, for control itself, and for namespaces without one of their own.
    pub default: IntermediateSource,
    /// What signs for the workloads of some namespaces.
    pub namespaces: Vec<(NamespaceScope, IntermediateSource)>,
}

impl From<&SignerFiles<'_>> for SignerSources {
    fn from(files: &SignerFiles<'_>) -> Self {
        Self {
            root: files.root.to_owned(),
            default: IntermediateSource {
                certificate: files.ca_cert.to_owned(),
                key: KeySource::File(files.ca_key.to_owned()),
            },
            namespaces: Vec::new(),
        }
    }
}

impl SignerSources {
    /// All intermediates.
    pub fn intermediates(&self) -> impl Iterator<Item = &IntermediateSource> {
        let scoped = self.namespaces.iter().map(|(_, source)| source);
        std::iter::once(&self.default).chain(scoped)
    }
}

/// Where an intermediate is.
#[derive(Clone, Debug)]
pub struct IntermediateSource {
    /// PEM: it first, then what leads to the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: KeySource,
}

/// Namespaces that have an intermediate of their own: one by its name, or all that begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceScope {
    text: String,
    prefix: bool,
}

/// Why a text is no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no namespace: give its name, or how names begin and a *, such as team-a-*")]
pub struct ScopeFault(String);

impl NamespaceScope {
    /// How well a namespace fits: the longer the better, a full name best; None if it doesn't.
    #[must_use]
    pub fn fit(&self, namespace: &str) -> Option<usize> {
        match self.prefix {
            true => namespace.starts_with(&self.text).then_some(self.text.len()),
            false => (namespace == self.text).then_some(usize::MAX),
        }
    }
}

impl FromStr for NamespaceScope {
    type Err = ScopeFault;

    fn from_str(given: &str) -> Result<Self, ScopeFault> {
        let (text, prefix) = match given.strip_suffix('*') {
            Some(text) => (text, true),
            None => (given, false),
        };
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > 63 || !text.bytes().all(allowed) {
            return Err(ScopeFault(given.to_owned()));
        }
        Ok(Self {
            text: text.to_owned(),
            prefix,
        })
    }
}

impl fmt::Display for NamespaceScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.prefix { "*" } else { "" };
        write!(f, "{}{star}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_name_fits_best_and_then_the_longest_beginning() {
        let fit = |scope: &str, namespace| scope.parse::<NamespaceScope>().unwrap().fit(namespace);
        assert!(fit("team-a", "team-a") > fit("team-*", "team-a"));
        assert!(fit("team-a*", "team-a") > fit("team-*", "team-a"));
        assert_eq!(fit("team-a", "team-a-1"), None);
        assert_eq!(fit("team-a-*", "team-a"), None);
        for wrong in ["", "*", "Team", "a*b", "a/b"] {
            assert!(wrong.parse::<NamespaceScope>().is_err(), "{wrong}");
        }
    }
}
