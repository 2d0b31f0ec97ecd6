//! The trust bundle: the roots that nodes and workloads trust.

use rustls::pki_types::CertificateDer;

use super::encode_pem;

/// Roots, as the operator gave them. While a root is rolled over there are two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle(Vec<CertificateDer<'static>>);

impl TrustBundle {
    pub(super) fn new(roots: Vec<CertificateDer<'static>>) -> Self {
        Self(roots)
    }

    /// DER, one certificate each.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// PEM, one certificate each.
    #[must_use]
    pub fn pem(&self) -> Vec<String> {
        self.0.iter().map(|root| encode_pem(root)).collect()
    }
}
