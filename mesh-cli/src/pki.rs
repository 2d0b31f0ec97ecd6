//! A demo PKI: a root, and intermediates for `mesh-control`.
//!
//! The only place of Nodemesh that makes a self-signed certificate, and it is no part of the
//! control component: an operator's root lives in the operator's own PKI.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use mesh_core::identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// Makes a root (root.pem, root-key.pem) and an intermediate signed by it (ca-cert.pem,
/// ca-key.pem), all ECDSA P-256. Needs no network and asks nobody.
///
/// This is for demos and tests. In production let your own PKI sign an intermediate
/// (CA:TRUE, pathlen:0, keyCertSign) and give mesh-control that one; the root's key never
/// needs to be near the mesh.
#[derive(Args)]
pub(crate) struct InitArgs {
    /// Folder for the files; made with mode 0700 if it is not there
    #[arg(long)]
    dir: PathBuf,
    /// SPIFFE trust domain, such as cluster.local
    #[arg(long)]
    trust_domain: TrustDomain,
    /// How long the root is valid, in days
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
    root_days: u32,
    /// How long each intermediate is valid, in days; never longer than the root
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36500))]
    intermediate_days: u32,
    /// How many intermediates: ca-cert.pem, then ca-2-cert.pem and so on, each with its key
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    intermediates: u32,
}

/// A file to write, and whether it holds a secret.
struct Output {
    path: PathBuf,
    content: String,
    mode: u32,
}

/// Makes the PKI and returns what to tell the operator.
///
/// # Errors
/// A file that is already there (nothing is written then), or one that can't be written.
pub(crate) fn init(args: &InitArgs) -> anyhow::Result<String> {
    let outputs = make(args, OffsetDateTime::now_utc()).context("making certificates")?;
    let taken: Vec<_> = outputs
        .iter()
        .filter(|o| fs::symlink_metadata(&o.path).is_ok())
        .map(|o| o.path.display().to_string())
        .collect();
    if !taken.is_empty() {
        bail!(
            "refusing to overwrite {}: keys that are in use can't be made again; choose another --dir, or remove the files yourself",
            taken.join(", ")
        );
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.dir)
        .with_context(|| format!("making folder {}", args.dir.display()))?;
    for output in &outputs {
        write_new(output).with_context(|| format!("writing {}", output.path.display()))?;
    }
    Ok(report(args, &outputs))
}

fn write_new(output: &Output) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(output.mode)
        .open(&output.path)?;
    file.write_all(output.content.as_bytes())?;
    file.sync_all()
}

fn make(args: &InitArgs, now: OffsetDateTime) -> Result<Vec<Output>, rcgen::Error> {
    let file = |name: &str, content: String, mode| Output {
        path: args.dir.join(name),
        content,
        mode,
    };
    let domain = &args.trust_domain;
    let end = now + Duration::days(args.root_days.into());
    let root_key = KeyPair::generate()?;
    let root_params = authority(&format!("{domain} demo root"), domain, (now, end), None)?;
    let root = root_params.self_signed(&root_key)?;
    let mut outputs = vec![
        file("root.pem", root.pem(), 0o644),
        file("root-key.pem", root_key.serialize_pem(), 0o600),
    ];
    let issuer = Issuer::new(root_params, root_key);
    let end = end.min(now + Duration::days(args.intermediate_days.into()));
    for number in 1..=args.intermediates {
        let infix = match number {
            1 => String::new(),
            n => format!("{n}-"),
        };
        let name = format!("{domain} demo intermediate {number}");
        let key = KeyPair::generate()?;
        let certificate =
            authority(&name, domain, (now, end), Some(0))?.signed_by(&key, &issuer)?;
        outputs.push(file(
            &format!("ca-{infix}cert.pem"),
            certificate.pem(),
            0o644,
        ));
        outputs.push(file(
            &format!("ca-{infix}key.pem"),
            key.serialize_pem(),
            0o600,
        ));
    }
    Ok(outputs)
}

fn authority(
    name: &str,
    domain: &TrustDomain,
    (from, until): (OffsetDateTime, OffsetDateTime),
    path_length: Option<u8>,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Nodemesh demo");
    params.distinguished_name.push(DnType::CommonName, name);
    // X.509-SVID specification, §4.2: a signing certificate carries its trust domain's ID.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into()?)];
    params.not_before = from - Duration::minutes(5);
    params.not_after = until;
    params.is_ca = IsCa::Ca(path_length.map_or(
        BasicConstraints::Unconstrained,
        BasicConstraints::Constrained,
    ));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = path_length.is_some();
    Ok(params)
}

fn report(args: &InitArgs, outputs: &[Output]) -> String {
    let mut text = format!(
        "A demo PKI for trust domain {}. For demos and tests only: its root's key lies beside it.\n",
        args.trust_domain
    );
    for output in outputs {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "  {}  (mode {:o})",
            output.path.display(),
            output.mode
        );
    }
    let path = |name: &str| Path::display(&args.dir.join(name)).to_string();
    let _ = writeln!(
        text,
        "\nStart the control component with it:\n  mesh-control run --trust-domain {} --ca-cert {} --ca-key {} --root {} …",
        args.trust_domain,
        path("ca-cert.pem"),
        path("ca-key.pem"),
        path("root.pem"),
    );
    text
}
