//! Raw command line → validated configuration. Every mistake is reported at once.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use mesh_common::MAX_PODS;
use mesh_core::identity::{NodeIdentity, TrustDomain};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::transport::Uri;

/// Exit status for a command line that can't be used (`EX_USAGE` of sysexits.h).
pub const EX_USAGE: i32 = 64;

/// Lowest worker uid that is accepted: below are the system's and its users' uids.
const UID_FLOOR: u32 = 65_536;

/// `mesh-agent run`, as given. Nothing is required here, so that [`Config::validate`] can
/// report every mistake and not just the first.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Name of this node, as pods have it in spec.nodeName
    #[arg(long, env = "NODEMESH_NODE")]
    pub node: Option<String>,
    /// Name of this installation on this kernel: part of cgroup, pin and folder names
    #[arg(long, env = "NODEMESH_INSTANCE", default_value = "default")]
    pub instance: String,
    /// Where mesh-control listens, e.g. https://10.0.0.1:15012
    #[arg(long, env = "NODEMESH_CONTROL")]
    pub control: Option<String>,
    /// PEM file of the roots that control, nodes and workloads chain to
    #[arg(long, value_name = "FILE", env = "NODEMESH_TRUST_BUNDLE")]
    pub trust_bundle: Option<PathBuf>,
    /// File with a single-use token (`mesh-control token create`); only read while this
    /// node has no valid certificate in --state-dir
    #[arg(long, value_name = "FILE", env = "NODEMESH_JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// Node key, node certificate, last discovery [default: /var/lib/nodemesh/INSTANCE]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// agent.sock and pods/*.json [default: /run/nodemesh/INSTANCE]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// First of the 1024 uids that workers run as; must belong to nobody else
    #[arg(long, value_name = "UID", default_value = "3900000000")]
    pub uid_base: String,
    /// Serve /metrics, /healthz and /readyz here, e.g. 127.0.0.1:15020
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_listen: Option<String>,
    /// Log lines as text or as JSON
    #[arg(long, value_name = "text|json", default_value = "text")]
    pub log_format: String,
    /// Name of the cluster, first part of every workload's uid
    #[arg(long, default_value = "Kubernetes")]
    pub cluster_id: String,
    /// A DNS resolver of the cluster: port 53 of it is open to every pod, besides that of the
    /// service kube-system/kube-dns and its endpoints. May be given several times
    #[arg(long = "resolver", value_name = "IP")]
    pub resolvers: Vec<String>,
    /// Where bpffs is mounted (it is mounted there if it is not)
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A configuration the supervisor can run with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Node name.
    pub node: String,
    /// Instance name.
    pub instance: String,
    /// `https://…` of the control component.
    pub control: Uri,
    /// The trust bundle, PEM as read.
    pub trust_bundle_pem: String,
    /// The trust bundle's certificates.
    pub trust_bundle: Vec<CertificateDer<'static>>,
    /// Join token, where one was given.
    pub join_token_file: Option<PathBuf>,
    /// Folder of the node's key and certificate.
    pub state_dir: PathBuf,
    /// Folder of socket and pod records.
    pub run_dir: PathBuf,
    /// First worker uid.
    pub uid_base: u32,
    /// Metrics listener.
    pub metrics_listen: Option<SocketAddr>,
    /// Log format.
    pub log_format: LogFormat,
    /// Cluster id.
    pub cluster_id: String,
    /// DNS resolvers of the cluster that the operator named.
    pub resolvers: Vec<IpAddr>,
    /// bpffs mount point.
    pub bpffs: PathBuf,
}

/// One mistake in the command line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    /// A required option is absent.
    #[error("{option} is missing: {why}")]
    Missing {
        /// The option.
        option: &'static str,
        /// What it is for.
        why: &'static str,
    },
    /// A value can't be used.
    #[error("{option} {value:?}: {why}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// Why it can't be used, and what can.
        why: String,
    },
}

fn fault(option: &'static str, value: impl fmt::Display, why: impl fmt::Display) -> ConfigFault {
    ConfigFault::Value {
        option,
        value: value.to_string(),
        why: why.to_string(),
    }
}

/// Whether a text can be part of a cgroup's, a file's and a pin's name.
pub(super) fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.bytes().all(inner)
}

/// Default run folder of an instance.
#[must_use]
pub fn default_run_dir(instance: &str) -> PathBuf {
    Path::new("/run/nodemesh").join(instance)
}

impl Config {
    /// Checks a command line, reading the files that it names.
    ///
    /// # Errors
    /// Every mistake there is, not just the first.
    pub fn validate(raw: RunArgs) -> Result<Self, Vec<ConfigFault>> {
        let mut faults = Vec::new();
        let node = check_node(raw.node.as_deref(), &mut faults);
        if !is_instance(&raw.instance) {
            let why = "use 1 to 32 lower-case letters, digits and '-'";
            faults.push(fault("--instance", &raw.instance, why));
        }
        let control = check_control(raw.control.as_deref(), &mut faults);
        let (trust_bundle_pem, trust_bundle) =
            check_bundle(raw.trust_bundle.as_deref(), &mut faults);
        let uid_base = check_uid_base(&raw.uid_base, &mut faults);
        let metrics_listen = raw.metrics_listen.as_deref().and_then(|text| {
            let parsed = text.parse();
            parsed
                .map_err(|_| faults.push(fault("--metrics-listen", text, "not IP:PORT")))
                .ok()
        });
        let log_format = match raw.log_format.as_str() {
            "json" => LogFormat::Json,
            "text" => LogFormat::Text,
            other => {
                faults.push(fault("--log-format", other, "neither text nor json"));
                LogFormat::Text
            }
        };
        let resolvers = check_resolvers(&raw.resolvers, &mut faults);
        if raw.cluster_id.is_empty() || raw.cluster_id.contains('/') {
            let why = "must not be empty or contain '/'";
            faults.push(fault("--cluster-id", &raw.cluster_id, why));
        }
        let state_dir = raw
            .state_dir
            .unwrap_or_else(|| Path::new("/var/lib/nodemesh").join(&raw.instance));
        let run_dir = raw
            .run_dir
            .unwrap_or_else(|| default_run_dir(&raw.instance));
        for (option, dir) in [
            ("--state-dir", &state_dir),
            ("--run-dir", &run_dir),
            ("--bpffs", &raw.bpffs),
        ] {
            if !dir.is_absolute() {
                faults.push(fault(option, dir.display(), "must be an absolute path"));
            }
        }
        let (Some(node), Some(control), Some(uid_base), true) =
            (node, control, uid_base, faults.is_empty())
        else {
            return Err(faults);
        };
        Ok(Self {
            node,
            instance: raw.instance,
            control,
            trust_bundle_pem,
            trust_bundle,
            join_token_file: raw.join_token_file,
            state_dir,
            run_dir,
            uid_base,
            metrics_listen,
            log_format,
            cluster_id: raw.cluster_id,
            resolvers,
            bpffs: raw.bpffs,
        })
    }
}

/// Whether a text can name an instance.
pub(super) fn is_instance(text: &str) -> bool {
    is_name(text) && text.len() <= 32 && !text.contains('.')
}

fn check_node(node: Option<&str>, faults: &mut Vec<ConfigFault>) -> Option<String> {
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

fn check_control(control: Option<&str>, faults: &mut Vec<ConfigFault>) -> Option<Uri> {
    let Some(text) = control else {
        let why = "where mesh-control listens, e.g. https://10.0.0.1:15012";
        faults.push(ConfigFault::Missing {
            option: "--control",
            why,
        });
        return None;
    };
    let uri: Option<Uri> = text.parse().ok();
    let uri = uri.filter(|u| u.scheme_str() == Some("https") && u.port_u16().is_some());
    if uri.is_none() {
        faults.push(fault("--control", text, "not https://HOST:PORT"));
    }
    uri
}

fn check_bundle(
    path: Option<&Path>,
    faults: &mut Vec<ConfigFault>,
) -> (String, Vec<CertificateDer<'static>>) {
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
        Ok(roots) if !roots.is_empty() => (pem, roots),
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

fn check_resolvers(texts: &[String], faults: &mut Vec<ConfigFault>) -> Vec<IpAddr> {
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

fn check_uid_base(text: &str, faults: &mut Vec<ConfigFault>) -> Option<u32> {
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
    fn every_mistake_is_reported_at_once() {
        let raw = RunArgs {
            node: Some("a node".to_owned()),
            instance: "Upper".to_owned(),
            control: Some("http://10.0.0.1:15012".to_owned()),
            uid_base: "12".to_owned(),
            metrics_listen: Some("nowhere".to_owned()),
            log_format: "xml".to_owned(),
            cluster_id: "a/b".to_owned(),
            resolvers: vec!["10.96.0.10".to_owned(), "dns.local".to_owned()],
            run_dir: Some("relative".into()),
            ..RunArgs::default()
        };
        let faults = Config::validate(raw).unwrap_err();
        let text: Vec<String> = faults.iter().map(ToString::to_string).collect();
        for option in [
            "--node",
            "--instance",
            "--control",
            "--trust-bundle",
            "--uid-base",
            "--metrics-listen",
            "--log-format",
            "--cluster-id",
            "--resolver",
            "--run-dir",
            "--bpffs",
        ] {
            assert!(
                text.iter().any(|t| t.starts_with(option)),
                "{option}: {text:#?}"
            );
        }
        assert_eq!(faults.len(), 11, "{text:#?}");
    }

    #[test]
    fn a_uid_range_that_somebody_has_is_refused() {
        assert!(uid_owner(100_000, "root:100500:65536", "").is_some());
        assert!(uid_owner(100_000, "root:101024:65536", "").is_none());
        assert!(uid_owner(100_000, "", "app:x:101023:0::/:/bin/sh").is_some());
        assert!(uid_owner(100_000, "", "app:x:101024:0::/:/bin/sh").is_none());
    }
}
