//! A PKI in a temporary folder, and leafs of every kind signed by its intermediate.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use super::Identified;

pub struct Pki {
    folder: TempDir,
    root_pem: String,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A CA certificate's parameters, valid from yesterday for 30 days.
pub fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(30);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A certificate that signs others, and its key.
pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// A root.
    pub fn root(name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// An intermediate that this one has signed.
    pub fn below(&self, name: &str) -> Self {
        let (params, key) = (authority(name), KeyPair::generate().unwrap());
        Self {
            pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Its key, PEM.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

/// A CRL as PEM.
pub fn list(
    issuer: &Issuer<'_, KeyPair>,
    serials: &[&[u8]],
    adjust: impl FnOnce(&mut CertificateRevocationListParams),
) -> String {
    let now = OffsetDateTime::now_utc();
    let revoked = |serial: &&[u8]| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: now - Duration::minutes(1),
        reason_code: None,
        invalidity_date: None,
    };
    let mut params = CertificateRevocationListParams {
        this_update: now - Duration::minutes(1),
        next_update: now + Duration::hours(1),
        crl_number: SerialNumber::from_slice(&[1]),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    adjust(&mut params);
    params.signed_by(issuer).unwrap().pem().unwrap()
}

impl Pki {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// With an intermediate that differs from a sound one.
    pub fn with(adjust: impl FnOnce(&mut CertificateParams)) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root_params = authority("test root");
        let root_pem = root_params.self_signed(&root_key).unwrap().pem();
        let root = Issuer::new(root_params, root_key);
        let ca_key = KeyPair::generate().unwrap();
        let mut ca_params = authority("test intermediate");
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        adjust(&mut ca_params);
        let ca_pem = ca_params.signed_by(&ca_key, &root).unwrap().pem();
        let pki = Self {
            folder: tempfile::tempdir().unwrap(),
            root_pem,
            ca_pem,
            issuer: Issuer::new(ca_params, ca_key),
        };
        pki.write("root.pem", &pki.root_pem, 0o644);
        pki.write("root-key.pem", &root.key().serialize_pem(), 0o600);
        pki.write("ca-cert.pem", &pki.ca_pem, 0o644);
        pki.write("ca-key.pem", &pki.issuer.key().serialize_pem(), 0o600);
        pki
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str, mode: u32) {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }

    /// A CRL of the root's that lists these serial numbers, sound but for what `adjust` does.
    pub fn list(
        &self,
        serials: &[&[u8]],
        adjust: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> String {
        let key = fs::read_to_string(self.path("root-key.pem")).unwrap();
        let root = Issuer::new(authority("test root"), KeyPair::from_pem(&key).unwrap());
        list(&root, serials, adjust)
    }

    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A leaf with this URI, sound but for what `adjust` does.
    pub fn leaf(&self, uri: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Identified {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
        params.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        adjust(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Identified {
            chain: format!("{}{}", leaf.pem(), self.ca_pem),
            key: key.serialize_pem(),
        }
    }
}

/// Runs `openssl` in a folder.
pub fn openssl(folder: &Path, line: &str) -> Output {
    Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("the openssl command is installed")
}
