//! Certificates as a foreign peer may show them, made with the mesh's own signer where the
//! point is something else than who signed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme, version::TLS13,
};

use crate::lab::Lab;
use crate::mesh;

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    Genuine,
    /// It has been valid once.
    Expired,
    /// It may sign others.
    IsCa,
    /// The signer is the mesh's, the name is not.
    TrustDomain,
    /// The name is the mesh's, the signer is not.
    ForeignRoot,
    /// It lacks this side's extended key usage.
    Purpose(ExtendedKeyUsagePurpose),
}

/// A chain and its key.
#[derive(Debug)]
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Writes the certificates, leaf first, as `0.crt` and so on, and `key.der` into a folder.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for (index, certificate) in self.chain.iter().enumerate() {
            fs::write(folder.join(format!("{index}.crt")), certificate)?;
        }
        fs::write(folder.join("key.der"), self.key.secret_der())?;
        Ok(())
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// If there is no certificate or no key in the folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let files = (0..).map(|index| folder.join(format!("{index}.crt")));
        let files = files.take_while(|file| file.exists());
        let chain: std::io::Result<Vec<_>> = files.map(|f| Ok(fs::read(f)?.into())).collect();
        let chain = chain?;
        anyhow::ensure!(!chain.is_empty(), "no certificate in {}", folder.display());
        let key = fs::read(folder.join("key.der"))?;
        Ok(Self {
            chain,
            key: PrivatePkcs8KeyDer::from(key).into(),
        })
    }
}

/// Signs as the mesh does.
#[derive(Debug)]
pub struct Forger {
    issuer: Issuer<'static, KeyPair>,
    issuer_der: CertificateDer<'static>,
}

impl Forger {
    /// Takes the signer of a lab whose mesh runs.
    ///
    /// # Errors
    /// If the mesh was not started, or its PKI can't be read.
    pub fn new(lab: &Lab) -> Result<Self> {
        let pki = &lab.mesh.as_ref().context("the mesh is not running")?.pki;
        Self::from_files(&pki.join("ca-key.pem"), &pki.join("ca-cert.pem"))
    }

    /// Takes another mesh's signer, from PEM files.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn from_files(key: &Path, certificate: &Path) -> Result<Self> {
        let read = || fs::read_to_string(key).with_context(|| key.display().to_string());
        let key = KeyPair::from_pem(&read()?)?;
        let issuer_der = CertificateDer::from_pem_file(certificate)
            .with_context(|| certificate.display().to_string())?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&issuer_der, key)?,
            issuer_der,
        })
    }

    /// Credentials for `identity` (`ns/<namespace>/sa/<name>`), with a flaw.
    ///
    /// # Errors
    /// If the name makes no SPIFFE ID.
    pub fn credentials(&self, identity: &str, flaw: &Flaw) -> Result<Credentials> {
        let domain = match flaw {
            Flaw::TrustDomain => "elsewhere.example",
            _ => mesh::TRUST_DOMAIN,
        };
        let uri = format!("spiffe://{domain}/{identity}");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = match flaw {
            Flaw::Expired => date_time_ymd(2021, 1, 1),
            _ => date_time_ymd(4000, 1, 1),
        };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
        if *flaw == Flaw::IsCa {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        if let Flaw::Purpose(lacking) = flaw {
            params.extended_key_usages.retain(|p| p != lacking);
        }
        let key = KeyPair::generate()?;
        let chain = match flaw {
            Flaw::ForeignRoot => {
                let (issuer, root) = foreign_root()?;
                vec![params.signed_by(&key, &issuer)?.der().clone(), root]
            }
            _ => {
                let leaf = params.signed_by(&key, &self.issuer)?;
                vec![leaf.der().clone(), self.issuer_der.clone()]
            }
        };
        Ok(Credentials {
            chain,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }
}

fn foreign_root() -> Result<(Issuer<'static, KeyPair>, CertificateDer<'static>)> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "somebody else's root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    let root = params.self_signed(&key)?;
    Ok((Issuer::new(params, key), root.der().clone()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A client that takes any server: it is the server's check that is tried.
///
/// # Errors
/// If chain and key don't fit.
pub fn client(credentials: Option<Credentials>) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider())));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_auth_cert(own.chain, own.key)?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A server that takes any client.
///
/// # Errors
/// If chain and key don't fit.
pub fn server(credentials: Credentials) -> Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(credentials.chain, credentials.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 was not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
