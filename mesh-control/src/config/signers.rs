//! Options of signers.

use std::fmt;
use std::path::Path;

use clap::{Args, ValueEnum};
use mesh_core::identity::TrustDomain;

use super::RunOptions;
use crate::ca::signer::{KeyKind, KeySource, Pkcs11Uri};
use crate::ca::{IntermediateSource, NamespaceScope, ScopeFault, SignerSources};

/// Options of `signer request`, as given.
#[derive(Args, Clone, Debug)]
pub struct SignerOptions {
    /// Name of the key in its token, as for `run --ca-key`
    #[arg(long, value_name = "URI")]
    pub key: Pkcs11Uri,
    /// SPIFFE trust domain that the intermediate is for
    #[arg(long, value_name = "DOMAIN")]
    pub trust_domain: TrustDomain,
    /// Make the key, in the token, which it can't leave
    #[arg(long, value_name = "CURVE", value_enum)]
    pub create: Option<Curve>,
}

/// Curves of keys that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

impl From<Curve> for KeyKind {
    fn from(curve: Curve) -> Self {
        match curve {
            Curve::P256 => Self::P256,
            Curve::P384 => Self::P384,
        }
    }
}

/// Where the signers are, by the options.
pub(super) fn sources(
    options: &RunOptions,
    note: &mut impl FnMut(&str, &dyn fmt::Display),
) -> Option<SignerSources> {
    let key = options
        .ca_key
        .parse()
        .map_err(|e| note("--ca-key", &e))
        .ok();
    let mut namespaces = Vec::new();
    let mut sound = true;
    for given in &options.issuer {
        match scoped_source(given) {
            Ok(source) => namespaces.push(source),
            Err(why) => {
                sound = false;
                note("--issuer", &why);
            }
        }
    }
    let default = IntermediateSource {
        certificate: options.ca_cert.clone(),
        key: key?,
    };
    sound.then(|| SignerSources {
        root: options.root.clone(),
        default,
        namespaces,
    })
}

/// `<namespace>=<folder>`.
fn scoped_source(given: &str) -> Result<(NamespaceScope, IntermediateSource), String> {
    let (scope, folder) = given
        .split_once('=')
        .ok_or_else(|| format!("{given:?}: give NAMESPACE=DIR"))?;
    let scope = scope.parse().map_err(|e: ScopeFault| e.to_string())?;
    let folder = Path::new(folder);
    let (key, uri) = (folder.join("tls.key"), folder.join("pkcs11.uri"));
    let key = match std::fs::read_to_string(&uri) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => KeySource::File(key),
        Err(e) => return Err(format!("{}: {e}", uri.display())),
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|e| format!("{}: {e}", uri.display()))?,
    };
    let certificate = folder.join("tls.crt");
    Ok((scope, IntermediateSource { certificate, key }))
}
