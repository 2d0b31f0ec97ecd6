//! Raw command line → validated configuration. Every mistake is reported at once.

mod check;
mod cni;
mod kubelet;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tonic::transport::Uri;

pub use super::unserved::OnUnserved;
pub use cni::{Cni, CniArgs, CniFolderArgs, CniFolders};

/// Exit status for a command line that can't be used (`EX_USAGE` of sysexits.h).
pub const EX_USAGE: i32 = 64;

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
    /// Where mesh-control listens, e.g. https://10.0.0.1:15012. Its replicas are given one by one, or
    /// by a name that has all their addresses (in a cluster, a headless service's). One is in use;
    /// when it fails another is. May be given several times; NODEMESH_CONTROL holds a list with commas
    #[arg(long, env = "NODEMESH_CONTROL", value_delimiter = ',')]
    pub control: Vec<String>,
    /// PEM file of the roots that control, nodes and workloads chain to: for the first contact with
    /// control, which says from then on what is trusted. It is kept in trust.pb in --state-dir
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
    /// What becomes of a pod that is to be in the mesh (enroll: enforce) and can't be served
    /// safely, because an app holds a port of the mesh or a device of the pod can't be walled:
    /// "cut-off" lets it reach nothing and be reached by nothing, "leave" leaves it as it is,
    /// uncaptured. Either is reported, and tried again
    #[arg(long, value_name = "cut-off|leave", default_value = "cut-off")]
    pub unserved: String,
    /// Where bpffs is mounted (it is mounted there if it is not)
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Seconds between two looks at whether every eBPF program is still attached as it was left;
    /// what isn't is repaired and reported [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub check_every: Option<u16>,
    /// Seconds that a tunnel may go on after its certificate was replaced, where its peer is no
    /// Nodemesh worker and can't be shown the new one; no longer than the old one holds
    /// [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub tunnel_drain: Option<u32>,
    /// Seconds that a worker which was replaced may take to finish the connections that it has; no
    /// longer than its certificate holds. What is left then is reset [default: 3600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    pub drain_for: Option<u32>,
    /// When workers that run another program than this one are replaced: "auto", one after the other
    /// from the start on, or "manual", on `mesh-agent roll`
    #[arg(long, value_name = "auto|manual", default_value = "auto")]
    pub roll: String,
    /// How many pods' workers are replaced at a time [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub roll_at_once: Option<u16>,
    /// Seconds that connections may go on in clear that a running pod had open when it was enrolled,
    /// as far as policy allows them; then they are reset. 0 resets them when the pod is enrolled
    /// [default: 3600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=2_592_000))]
    pub grandfather_for: Option<u32>,
    /// Kubelet's cgroup, from the root of the cgroup v2 hierarchy: connections of its processes pass to
    /// the ports that pods declare for probes. "none": no connection does
    /// [default: the first that is there of those that distributions start kubelet in, such as
    /// /system.slice/kubelet.service]
    #[arg(long, value_name = "PATH|none")]
    pub kubelet_cgroup: Option<String>,
    /// Seconds that workloads' certificates are asked to live; control gives no more than its own
    /// limit, and this by default
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(5..=86400))]
    pub certificate_lifetime: Option<u32>,
    /// The CNI plugin.
    #[command(flatten)]
    pub cni: CniArgs,
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
    /// `https://…` of the control component's replicas: one at least.
    pub control: Vec<Uri>,
    /// The trust bundle's certificates: what holds until control says what does.
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
    /// What becomes of a pod that can't be served.
    pub unserved: OnUnserved,
    /// bpffs mount point.
    pub bpffs: PathBuf,
    /// Time between two looks at what is attached.
    pub check_every: Duration,
    /// How long a tunnel may go on after its certificate was replaced.
    pub tunnel_drain: Duration,
    /// How long a worker that was replaced may take for what it has.
    pub drain_for: Duration,
    /// Workers of another program are replaced without being asked.
    pub roll_by_itself: bool,
    /// Pods whose workers are replaced at one time.
    pub roll_at_once: usize,
    /// How long connections may go on that a pod had open when it was enrolled.
    pub grandfather_for: Duration,
    /// The cgroups of which the first that is there is kubelet's, from the root of the hierarchy; none:
    /// nobody's connections are probes.
    pub kubelet_cgroups: Vec<PathBuf>,
    /// How long workloads' certificates are asked to live, in seconds; 0 leaves it to control.
    pub certificate_lifetime_s: u32,
    /// Where the CNI plugin is to be, and what it is told.
    pub cni: Option<Cni>,
}

const CHECK_EVERY_S: u16 = 5;
const TUNNEL_DRAIN_S: u32 = 600;
const DRAIN_FOR_S: u32 = 3600;
const GRANDFATHER_FOR_S: u32 = 3_600;

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
        let node = check::node(raw.node.as_deref(), &mut faults);
        if !is_instance(&raw.instance) {
            let why = "use 1 to 32 lower-case letters, digits and '-'";
            faults.push(fault("--instance", &raw.instance, why));
        }
        let control = check::control(&raw.control, &mut faults);
        let trust_bundle = check::bundle(raw.trust_bundle.as_deref(), &mut faults);
        let uid_base = check::uid_base(&raw.uid_base, &mut faults);
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
        let unserved = raw.unserved.parse();
        let unserved = unserved
            .map_err(|why| faults.push(fault("--unserved", &raw.unserved, why)))
            .unwrap_or(OnUnserved::CutOff);
        let roll_by_itself = match raw.roll.as_str() {
            "auto" => true,
            "manual" => false,
            other => {
                faults.push(fault("--roll", other, "neither auto nor manual"));
                false
            }
        };
        let resolvers = check::resolvers(&raw.resolvers, &mut faults);
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
        let kubelet_cgroups = kubelet::cgroups(raw.kubelet_cgroup.as_deref(), &mut faults);
        let cni = raw.cni.validate(&run_dir, &mut faults);
        let (Some(node), Some(uid_base), true) = (node, uid_base, faults.is_empty()) else {
            return Err(faults);
        };
        Ok(Self {
            node,
            instance: raw.instance,
            control,
            trust_bundle,
            join_token_file: raw.join_token_file,
            state_dir,
            run_dir,
            uid_base,
            metrics_listen,
            log_format,
            cluster_id: raw.cluster_id,
            resolvers,
            unserved,
            bpffs: raw.bpffs,
            check_every: Duration::from_secs(raw.check_every.unwrap_or(CHECK_EVERY_S).into()),
            tunnel_drain: Duration::from_secs(raw.tunnel_drain.unwrap_or(TUNNEL_DRAIN_S).into()),
            drain_for: Duration::from_secs(raw.drain_for.unwrap_or(DRAIN_FOR_S).into()),
            roll_by_itself,
            roll_at_once: raw.roll_at_once.unwrap_or(1).into(),
            grandfather_for: Duration::from_secs(
                raw.grandfather_for.unwrap_or(GRANDFATHER_FOR_S).into(),
            ),
            kubelet_cgroups,
            certificate_lifetime_s: raw.certificate_lifetime.unwrap_or(0),
            cni,
        })
    }
}

/// Whether a text can name an instance.
pub(super) fn is_instance(text: &str) -> bool {
    is_name(text) && text.len() <= 32 && !text.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let raw = RunArgs {
            node: Some("a node".to_owned()),
            instance: "Upper".to_owned(),
            control: vec!["http://10.0.0.1:15012".to_owned()],
            uid_base: "12".to_owned(),
            metrics_listen: Some("nowhere".to_owned()),
            log_format: "xml".to_owned(),
            cluster_id: "a/b".to_owned(),
            resolvers: vec!["10.96.0.10".to_owned(), "dns.local".to_owned()],
            unserved: "open".to_owned(),
            roll: "soon".to_owned(),
            kubelet_cgroup: Some("kubelet.service".to_owned()),
            run_dir: Some("relative".into()),
            cni: CniArgs {
                folders: CniFolderArgs {
                    cni_bin_dir: Some("/opt/cni/bin".into()),
                    cni_conf_dir: None,
                },
                ..CniArgs::default()
            },
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
            "--unserved",
            "--roll",
            "--kubelet-cgroup",
            "--resolver",
            "--run-dir",
            "--bpffs",
            "--cni-conf-dir",
        ] {
            assert!(
                text.iter().any(|t| t.starts_with(option)),
                "{option}: {text:#?}"
            );
        }
        assert_eq!(faults.len(), 15, "{text:#?}");
    }
}
