//! The certificate authority: signs node, workload and its own server certificates with the
//! operator's intermediate. It never makes a self-signed certificate.

mod load;
mod request;

use std::sync::Arc;

use mesh_core::certificate::{Leaf, LeafFault, Validity, ValidityFault, leaf_validity};
use mesh_core::identity::{Identity, NodeIdentity, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

pub use load::{SignerFault, SignerFiles};
pub use request::{RequestFault, RequestedKey};

/// Longest life of a workload's certificate, and what a request gets that asks for nothing.
pub const WORKLOAD_LIFETIME_S: i64 = 3600;
/// Life of a node's certificate.
pub const NODE_LIFETIME_S: i64 = 24 * 3600;
/// Life of the control component's own certificate.
pub const SERVER_LIFETIME_S: i64 = 24 * 3600;
/// DNS name in the control component's own certificate, which node agents insist on.
pub const SERVER_NAME: &str = "nodemesh-control";

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueFault {
    /// The signing chain or the lifetime does not allow it.
    #[error("can't issue a certificate: {0}")]
    Validity(#[from] ValidityFault),
    /// A lifetime below zero was asked for.
    #[error("a lifetime of {0} s was asked for; ask for a positive one, or 0 for the default")]
    Lifetime(i64),
    /// The cryptography library refused.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
    /// What was made does not read back as what it should be.
    #[error("the certificate that was made is not sound: {0}")]
    Unsound(#[from] LeafFault),
    /// The system's random numbers failed.
    #[error("the system gave no random numbers")]
    Random,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM: the leaf, then the intermediates, without the root.
    pub chain_pem: Vec<String>,
    /// DER, the same certificates.
    pub chain: Vec<CertificateDer<'static>>,
    /// What the leaf says.
    pub leaf: Leaf,
}

/// The intermediate CA and its key, checked.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    /// The intermediate first, then what leads to the root, without it.
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    /// Validities of the chain and of the root it leads to.
    validities: Vec<Validity>,
}

/// What tells the three kinds of leaf apart.
struct Template {
    names: Vec<SanType>,
    purposes: Vec<ExtendedKeyUsagePurpose>,
    lifetime_s: i64,
}

impl Authority {
    /// Loads and checks the signer.
    ///
    /// # Errors
    /// The first thing wrong with the files, the chain or the key.
    pub fn load(
        files: &SignerFiles<'_>,
        trust_domain: &TrustDomain,
        now_s: i64,
    ) -> Result<Self, SignerFault> {
        load::load(files, trust_domain, now_s)
    }

    /// The trust domain it signs for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots, DER.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots, PEM.
    #[must_use]
    pub fn roots_pem(&self) -> Vec<String> {
        self.roots.iter().map(|root| encode_pem(root)).collect()
    }

    /// The last second at which the whole signing chain is valid, since the epoch.
    #[must_use]
    pub fn not_after_s(&self) -> i64 {
        let ends = self.validities.iter().map(|v| v.not_after_s);
        ends.min().unwrap_or(i64::MIN)
    }

    /// Issues an SVID for `identity` that lives `lifetime_s` (0: the default; never longer
    /// than [`WORKLOAD_LIFETIME_S`]).
    ///
    /// # Errors
    /// A signing chain that is not valid now, or a negative lifetime.
    pub fn issue_workload(
        &self,
        identity: &Identity,
        key: &RequestedKey,
        lifetime_s: i64,
        now_s: i64,
    ) -> Result<Issued, IssueFault> {
        let lifetime_s = match lifetime_s {
            0 => WORKLOAD_LIFETIME_S,
            s if s < 0 => return Err(IssueFault::Lifetime(s)),
            s => s.min(WORKLOAD_LIFETIME_S),
        };
        let template = Template {
            names: vec![SanType::URI(identity.to_string().try_into()?)],
            purposes: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            lifetime_s,
        };
        self.issue(template, key, now_s)
    }

    /// Issues a node's certificate.
    ///
    /// # Errors
    /// A signing chain that is not valid now.
    pub fn issue_node(
        &self,
        node: &NodeIdentity,
        key: &RequestedKey,
        now_s: i64,
    ) -> Result<Issued, IssueFault> {
        let template = Template {
            names: vec![SanType::URI(node.to_string().try_into()?)],
            purposes: vec![ExtendedKeyUsagePurpose::ClientAuth],
            lifetime_s: NODE_LIFETIME_S,
        };
        self.issue(template, key, now_s)
    }

    /// Makes a key and issues the control component's own server certificate for it.
    ///
    /// # Errors
    /// A signing chain that is not valid now, or a key that can't be made.
    pub fn issue_server(&self, now_s: i64) -> Result<(Issued, Arc<CertifiedKey>), IssueFault> {
        let key = KeyPair::generate()?;
        let uri = format!("spiffe://{}/nodemesh/control", self.trust_domain);
        let template = Template {
            names: vec![
                SanType::DnsName(SERVER_NAME.try_into()?),
                SanType::URI(uri.try_into()?),
            ],
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth],
            lifetime_s: SERVER_LIFETIME_S,
        };
        let issued = self.issue(template, &key, now_s)?;
        let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
            .map_err(|_| rcgen::Error::UnsupportedSignatureAlgorithm)?;
        let certified = CertifiedKey::new(issued.chain.clone(), signing);
        Ok((issued, Arc::new(certified)))
    }

    fn issue(
        &self,
        template: Template,
        key: &impl PublicKeyData,
        now_s: i64,
    ) -> Result<Issued, IssueFault> {
        let validity = leaf_validity(now_s, template.lifetime_s, &self.validities)?;
        let mut params = CertificateParams::default();
        // SVIDs are named by their URI alone; with no subject, that extension is critical.
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(random_serial()?);
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
}

/// 126 random bits in 16 bytes: positive, and always of the same length.
fn random_serial() -> Result<SerialNumber, IssueFault> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueFault::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn encode_pem(certificate: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate), config)
}
