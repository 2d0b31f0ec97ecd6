//! Intermediates, and which of them signs for whom.

use std::sync::Arc;

use mesh_core::certificate::{Leaf, Validity, leaf_validity};
use mesh_core::identity::{NodeIdentity, TrustDomain};
use mesh_core::revocation::NODE_MARK_LEN;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use super::signer::IssuingKey;
use super::source::NamespaceScope;
use super::{IssueFault, Issued, SERVER_LIFETIME_S, SERVER_NAME, encode_pem};
use crate::trust::node_mark;

/// An intermediate CA and its key, checked.
pub(super) struct Intermediate {
    pub(super) subject: String,
    pub(super) issuer: Issuer<'static, IssuingKey>,
    /// The intermediate first, then what leads to the root, without it.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The root that it leads to.
    pub(super) root: CertificateDer<'static>,
    /// Validities of the chain and of the root.
    pub(super) validities: Vec<Validity>,
}

/// What tells the three kinds of leaf apart.
pub(super) struct Template<'a> {
    pub(super) names: Vec<SanType>,
    pub(super) purposes: Vec<ExtendedKeyUsagePurpose>,
    pub(super) lifetime_s: i64,
    /// Through which it is issued.
    pub(super) node: Option<&'a NodeIdentity>,
}

impl Intermediate {
    /// The last second at which the whole chain is valid, since the epoch.
    pub(super) fn not_after_s(&self) -> i64 {
        let ends = self.validities.iter().map(|v| v.not_after_s);
        ends.min().unwrap_or(i64::MIN)
    }

    pub(super) fn issue(
        &self,
        template: Template<'_>,
        key: &impl PublicKeyData,
        now_s: i64,
    ) -> Result<Issued, IssueFault> {
        let validity = leaf_validity(now_s, template.lifetime_s, &self.validities)?;
        let mut params = CertificateParams::default();
        // SVIDs are named by their URI alone; with no subject, that extension is critical.
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(serial(template.node)?);
        params.not_before = at(validity.not_before_s);
        params.not_after = at(validity.not_after_s);
        params.subject_alt_names = template.names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = template.purposes;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        Ok(Issued {
            chain_pem: chain.iter().map(|c| encode_pem(c)).collect(),
            leaf: Leaf::from_der(certificate.der())?,
            chain,
        })
    }

    pub(super) fn issue_server(
        &self,
        trust_domain: &TrustDomain,
        now_s: i64,
    ) -> Result<(Issued, Arc<CertifiedKey>), IssueFault> {
        let key = KeyPair::generate()?;
        let uri = format!("spiffe://{trust_domain}/nodemesh/control");
        let template = Template {
            names: vec![
                SanType::DnsName(SERVER_NAME.try_into()?),
                SanType::URI(uri.try_into()?),
            ],
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth],
            lifetime_s: SERVER_LIFETIME_S,
            node: None,
        };
        let issued = self.issue(template, &key, now_s)?;
        let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
            .map_err(|_| rcgen::Error::UnsupportedSignatureAlgorithm)?;
        let certified = CertifiedKey::new(issued.chain.clone(), signing);
        Ok((issued, Arc::new(certified)))
    }
}

/// Which intermediate signs for which namespaces.
#[derive(Clone)]
pub(super) struct Issuers {
    pub(super) default: Arc<Intermediate>,
    pub(super) scoped: Vec<(NamespaceScope, Arc<Intermediate>)>,
}

impl Issuers {
    pub(super) fn new(
        default: Arc<Intermediate>,
        scoped: Vec<(NamespaceScope, Arc<Intermediate>)>,
    ) -> Self {
        Self { default, scoped }
    }

    /// What signs for the workloads of a namespace.
    pub(super) fn of(&self, namespace: &str) -> &Arc<Intermediate> {
        let fits = self.scoped.iter().filter_map(|(scope, intermediate)| {
            scope.fit(namespace).map(|length| (length, intermediate))
        });
        let best = fits.max_by_key(|(length, _)| *length);
        best.map_or(&self.default, |(_, intermediate)| intermediate)
    }

    /// What signs for exactly this scope, or in its place.
    pub(super) fn for_scope(&self, scope: &NamespaceScope) -> &Arc<Intermediate> {
        let own = self.scoped.iter().find(|(own, _)| own == scope);
        own.map_or(&self.default, |(_, intermediate)| intermediate)
    }

    /// All, by the name of what they sign for.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, &Arc<Intermediate>)> {
        let scoped = self.scoped.iter();
        let scoped = scoped.map(|(scope, intermediate)| (scope.to_string(), intermediate));
        std::iter::once(("default".to_owned(), &self.default)).chain(scoped)
    }
}

/// 96 random bits after the mark of the node, by which all that was issued through it can be
/// revoked: 20 bytes, the most that there may be (RFC 5280), positive, and always of that length.
fn serial(node: Option<&NodeIdentity>) -> Result<SerialNumber, IssueFault> {
    let mut bytes = [0; 20];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueFault::Random)?;
    match node {
        Some(node) => bytes[..NODE_MARK_LEN].copy_from_slice(&node_mark(node.node())),
        None => bytes[0] = bytes[0] & 0x3f | 0x40,
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
