//! The options that take more than parsing.

use std::net::IpAddr;
use std::path::Path;

use mesh_common::MAX_PODS;
use mesh_core::identity::{NodeIdentity, TrustDomain};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::transport::Uri;

use super::{ConfigFault, fault};

/// Lowest worker uid that is accepted: below are the system's and its users' uids.
const UID_FLOOR: u32 = 65_536;

pub(super) fn node(node: Option<&str>, faults: &mut Vec<ConfigFault>) -> Option<String> {
    let Some(node) = node else {
        let why = "the name pods have in spec.nodeName";
        faults.push(ConfigFault::Missing {
            option: "--node",
            why,
        });
        return None;
    };
    let domain: TrustDomain = "check".parse().expect("a trust domain");
    match NodeIdentity::new(domain, node) {
        Ok(_) => Some(node.to_owned()),
        Err(why) => {
            faults.push(fault("--node", node, why));
            None
        }
    }
}

pub(super) fn control(given: &[String], faults: &mut Vec<ConfigFault>) -> Vec<Uri> {
    if given.is_empty() {
        let why = "where mesh-control listens, e.g. https://10.0.0.1:15012";
        faults.push(ConfigFault::Missing {
            option: "--control",
            why,
        });
    }
    let mut uris = Vec::new();
    for text in given {
        let uri: Option<Uri> = text.parse().ok();
        let sound = |u: &Uri| u.scheme_str() == Some("https") && u.port_u16().is_some();
        match uri.filter(sound) {
            Some(uri) => uris.push(uri),
            None => faults.push(fault("--control", text, "not https://HOST:PORT")),
        }
    }
    uris
}

pub(super) fn bundle(
    path: Option<&Path>,
    faults: &mut Vec<ConfigFault>,
) -> Vec<CertificateDer<'static>> {
    let Some(path) = path else {
        let why = "the roots this node trusts, a PEM file (`meshctl pki init` makes a demo's)";
        faults.push(ConfigFault::Missing {
            option: "--trust-bundle",
            why,
        });
        return Default::default();
    };
    let pem = match std::fs::read_to_string(path) {
        Ok(pem) => pem,
        Err(e) => {
            let why = format!("can't be read: {e}");
            faults.push(fault("--trust-bundle", path.display(), why));
            return Default::default();
        }
    };
    match CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>() {
        Ok(roots) if !roots.is_empty() => roots,
        Ok(_) => {
            faults.push(fault(
                "--trust-bundle",
                path.display(),
                "holds no certificate",
            ));
            Default::default()
        }
        Err(e) => {
            let why = format!("is no PEM of certificates: {e}");
            faults.push(fault("--trust-bundle", path.display(), why));
            Default::default()
        }
    }
}

pub(super) fn resolvers(texts: &[String], faults: &mut Vec<ConfigFault>) -> Vec<IpAddr> {
    let mut resolvers = Vec::new();
    for text in texts {
        match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(a) if a.is_unspecified() || a.is_multicast() => {
                faults.push(fault("--resolver", text, "no host has this address"));
            }
            Ok(address) => resolvers.push(address),
            Err(_) => faults.push(fault("--resolver", text, "not an IP address")),
        }
    }
    resolvers
}

pub(super) fn uid_base(text: &str, faults: &mut Vec<ConfigFault>) -> Option<u32> {
    let base = match text.parse::<u32>() {
        // u32::MAX and its neighbour mean "no uid" and "overflow uid" to parts of the kernel.
        Ok(base) if (UID_FLOOR..=u32::MAX - 2 - MAX_PODS).contains(&base) => base,
        Ok(_) => {
            let why = format!("must lie in {UID_FLOOR}..={}", u32::MAX - 2 - MAX_PODS);
            faults.push(fault("--uid-base", text, why));
            return None;
        }
        Err(_) => {
            faults.push(fault("--uid-base", text, "not a number"));
            return None;
        }
    };
    let subuid = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if let Some(owner) = uid_owner(base, &subuid, &passwd) {
        let last = base + MAX_PODS - 1;
        let why = format!("uids {base}..={last} overlap with {owner}; choose a free range");
        faults.push(fault("--uid-base", text, why));
        return None;
    }
    Some(base)
}

/// Who already has a uid of `base..base + MAX_PODS`, by /etc/subuid and /etc/passwd.
fn uid_owner(base: u32, subuid: &str, passwd: &str) -> Option<String> {
    let (first, last) = (u64::from(base), u64::from(base + MAX_PODS - 1));
    for line in subuid.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(Ok(start)), Some(Ok(count))) = (
            fields.next(),
            fields.next().map(str::parse::<u64>),
            fields.next().map(str::parse::<u64>),
        ) else {
            continue;
        };
        if count > 0 && start <= last && start.saturating_add(count - 1) >= first {
            return Some(format!("{name}'s range in /etc/subuid"));
        }
    }
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid: u64 = fields.nth(1)?.parse().ok()?;
        (first..=last)
            .contains(&uid)
            .then(|| format!("user {name} in /etc/passwd"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_range_that_somebody_has_is_refused() {
        assert!(uid_owner(100_000, "root:100500:65536", "").is_some());
        assert!(uid_owner(100_000, "root:101024:65536", "").is_none());
        assert!(uid_owner(100_000, "", "app:x:101023:0::/:/bin/sh").is_some());
        assert!(uid_owner(100_000, "", "app:x:101024:0::/:/bin/sh").is_none());
    }
}
