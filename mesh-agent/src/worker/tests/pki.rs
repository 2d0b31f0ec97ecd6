//! A root, an intermediate, and leaves of every kind.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// What a leaf says.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) uris: Vec<String>,
    pub(super) is_ca: bool,
    pub(super) purposes: Vec<ExtendedKeyUsagePurpose>,
    pub(super) usages: Vec<KeyUsagePurpose>,
    /// From and to, seconds relative to now.
    pub(super) validity_s: (i64, i64),
}

impl Leaf {
    /// A good one.
    pub(super) fn of(identity: &str) -> Self {
        Self {
            uris: vec![identity.to_owned()],
            is_ca: false,
            purposes: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            usages: vec![KeyUsagePurpose::DigitalSignature],
            validity_s: (-60, 3600),
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = self
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        params.is_ca = if self.is_ca {
            IsCa::Ca(BasicConstraints::Unconstrained)
        } else {
            IsCa::ExplicitNoCa
        };
        params.extended_key_usages.clone_from(&self.purposes);
        params.key_usages.clone_from(&self.usages);
        let now = OffsetDateTime::now_utc();
        params.not_before = now + Duration::seconds(self.validity_s.0);
        params.not_after = now + Duration::seconds(self.validity_s.1);
        params
    }
}

/// A root and the intermediate that signs.
pub(super) struct Pki {
    root: Vec<u8>,
    intermediate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Pki {
    pub(super) fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root_params = authority("root");
        let root = root_params.self_signed(&root_key).unwrap().der().to_vec();
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate().unwrap();
        let params = authority("intermediate");
        let intermediate = params.signed_by(&key, &root_issuer).unwrap();
        Self {
            root,
            intermediate: intermediate.der().to_vec(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(super) fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.root.clone()]
    }

    /// A chain for the key of a signing request.
    pub(super) fn sign(&self, csr: &[u8], leaf: &Leaf) -> Vec<Vec<u8>> {
        let request = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
        let cert = leaf.params().signed_by(&request.public_key, &self.issuer);
        vec![cert.unwrap().der().to_vec(), self.intermediate.clone()]
    }

    /// A chain with a key of its own, for a peer that is no worker.
    pub(super) fn issue(
        &self,
        leaf: &Leaf,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let cert = leaf.params().signed_by(&key, &self.issuer).unwrap();
        let chain = vec![
            cert.der().clone(),
            CertificateDer::from(self.intermediate.clone()),
        ];
        (chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }
}
