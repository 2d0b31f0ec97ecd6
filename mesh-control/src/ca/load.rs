//! Loads signers and refuses, before anything is served, one that could not be trusted.

use std::path::Path;
use std::sync::Arc;

use mesh_core::certificate::Validity;
use mesh_core::identity::TrustDomain;
use rcgen::Issuer;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::fault::SignerFault;
use super::files::read;
use super::intermediate::{Intermediate, Issuers};
use super::signer::IssuingKey;
use super::source::{IntermediateSource, SignerSources};
use super::{SERVER_NAME, TrustBundle};

/// What the sources hold, checked.
pub(super) struct Loaded {
    pub(super) bundle: Arc<TrustBundle>,
    pub(super) issuers: Issuers,
}

/// Loads roots and intermediates: all of them, or none.
pub(super) fn load(
    sources: &SignerSources,
    trust_domain: &TrustDomain,
    now_s: i64,
) -> Result<Loaded, SignerFault> {
    let bundle = Arc::new(TrustBundle::new(certificates(&sources.root)?));
    let open = |source: &IntermediateSource| {
        let loading = Loading {
            source,
            root_path: &sources.root,
            bundle: &bundle,
            trust_domain,
            now_s,
        };
        loading.load().map(Arc::new)
    };
    let default = open(&sources.default)?;
    let mut scoped = Vec::new();
    for (scope, source) in &sources.namespaces {
        scoped.push((scope.clone(), open(source)?));
    }
    Ok(Loaded {
        issuers: Issuers::new(default, scoped),
        bundle,
    })
}

/// One intermediate that is being loaded.
struct Loading<'a> {
    source: &'a IntermediateSource,
    root_path: &'a Path,
    bundle: &'a TrustBundle,
    trust_domain: &'a TrustDomain,
    now_s: i64,
}

impl Loading<'_> {
    fn load(&self) -> Result<Intermediate, SignerFault> {
        let path = &self.source.certificate;
        let roots = self.bundle.roots();
        let mut chain = certificates(path)?;
        self.check_first(&chain[0])?;
        // An operator's chain file often ends with the root; peers have it already.
        chain.retain(|certificate| !roots.contains(certificate));
        let root = self.root_of(&chain)?;
        let mut validities = Vec::new();
        for (certificate, path) in chain
            .iter()
            .map(|c| (c, path.as_path()))
            .chain([(&root, self.root_path)])
        {
            let certificate = parse(certificate, path)?;
            validities.push(check_authority(&certificate, path, self.now_s)?);
        }
        let first = parse(&chain[0], path)?;
        let subject = first.subject().to_string();
        let key = self.source.key.open(&first)?;
        if key.public_key() != first.public_key().subject_public_key.as_ref() {
            return Err(SignerFault::KeyMismatch {
                key: self.source.key.to_string(),
                cert: path.clone(),
            });
        }
        let issuer = Issuer::from_ca_cert_der(&chain[0], IssuingKey(key))
            .map_err(|e| SignerFault::malformed(path, &e))?;
        let intermediate = Intermediate {
            subject,
            issuer,
            chain,
            root,
            validities,
        };
        self.prove(&intermediate)?;
        Ok(intermediate)
    }

    /// The signer itself: of this trust domain, and not self-signed.
    fn check_first(&self, certificate: &CertificateDer<'_>) -> Result<(), SignerFault> {
        let path = self.source.certificate.clone();
        let certificate = parse(certificate, &path)?;
        if signed(&certificate, &certificate) {
            return Err(SignerFault::SelfSigned {
                path,
                subject: certificate.subject().to_string(),
            });
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| SignerFault::malformed(&path, &e))?;
        let expected = format!("spiffe://{}", self.trust_domain);
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::URI(uri) = name
                && uri.starts_with("spiffe://")
                && *uri != expected
            {
                return Err(SignerFault::TrustDomain {
                    path,
                    found: (*uri).to_owned(),
                    expected: self.trust_domain.clone(),
                });
            }
        }
        Ok(())
    }

    /// The root that the chain leads to, each certificate being signed by the next.
    fn root_of(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<CertificateDer<'static>, SignerFault> {
        let path = &self.source.certificate;
        for (position, certificate) in chain.iter().enumerate() {
            let parsed = parse(certificate, path)?;
            if let Some(next) = chain.get(position + 1) {
                if signed(&parsed, &parse(next, path)?) {
                    continue;
                }
            } else {
                for root in self.bundle.roots() {
                    if signed(&parsed, &parse(root, self.root_path)?) {
                        return Ok(root.clone());
                    }
                }
            }
            return Err(SignerFault::NotChained {
                path: path.clone(),
                subject: parsed.subject().to_string(),
                issuer: parsed.issuer().to_string(),
                root: self.root_path.to_owned(),
            });
        }
        Err(SignerFault::malformed(path, &"it holds no intermediate"))
    }

    /// Issues a certificate and has it verified as a peer would: what the checks above don't
    /// know of (path lengths, name constraints, algorithms, a token that signs with another key)
    /// shows here, not at the first node.
    fn prove(&self, intermediate: &Intermediate) -> Result<(), SignerFault> {
        let unaccepted = |why: &dyn std::fmt::Display| SignerFault::Unaccepted {
            path: self.source.certificate.clone(),
            why: why.to_string(),
        };
        let (issued, _) = intermediate
            .issue_server(self.trust_domain, self.now_s)
            .map_err(|e| unaccepted(&e))?;
        let mut roots = RootCertStore::empty();
        for root in self.bundle.roots() {
            roots
                .add(root.clone())
                .map_err(|e| SignerFault::malformed(self.root_path, &e))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .map_err(|e| unaccepted(&e))?;
        let name = ServerName::try_from(SERVER_NAME).map_err(|e| unaccepted(&e))?;
        let seconds = u64::try_from(self.now_s).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let (leaf, intermediates) = issued
            .chain
            .split_first()
            .ok_or_else(|| unaccepted(&"nothing was issued"))?;
        verifier
            .verify_server_cert(leaf, intermediates, &name, &[], now)
            .map(|_| ())
            .map_err(|e| unaccepted(&e))
    }
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SignerFault> {
    let content = read(path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<_, _>>()
        .map_err(|e| SignerFault::malformed(path, &e))?;
    if found.is_empty() {
        return Err(SignerFault::malformed(path, &"it holds no PEM certificate"));
    }
    Ok(found)
}

fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
    path: &Path,
) -> Result<X509Certificate<'a>, SignerFault> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|e| SignerFault::malformed(path, &e))
}

fn signed(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    certificate.issuer() == issuer.subject()
        && certificate
            .verify_signature(Some(issuer.public_key()))
            .is_ok()
}

/// A certificate of the chain, or the root: allowed to sign, and valid now.
fn check_authority(
    certificate: &X509Certificate<'_>,
    path: &Path,
    now_s: i64,
) -> Result<Validity, SignerFault> {
    let path = path.to_owned();
    let subject = certificate.subject().to_string();
    let constraints = certificate
        .basic_constraints()
        .map_err(|e| SignerFault::malformed(&path, &e))?;
    let usage = certificate
        .key_usage()
        .map_err(|e| SignerFault::malformed(&path, &e))?;
    if !constraints.is_some_and(|c| c.value.ca) || usage.is_some_and(|u| !u.value.key_cert_sign()) {
        return Err(SignerFault::NotCa { path, subject });
    }
    let validity = certificate.validity();
    let (not_before_s, not_after_s) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    if not_after_s <= now_s {
        let when = validity.not_after.to_string();
        return Err(SignerFault::Expired {
            path,
            subject,
            when,
        });
    }
    if not_before_s > now_s {
        let when = validity.not_before.to_string();
        return Err(SignerFault::NotYetValid {
            path,
            subject,
            when,
        });
    }
    Ok(Validity {
        not_before_s,
        not_after_s,
    })
}
