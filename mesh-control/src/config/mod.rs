//! Options: raw from the command line, validated in one place, all mistakes reported at once.

mod kubernetes;
mod lists;
mod signers;
mod tokens;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use mesh_core::identity::TrustDomain;

use crate::attestor::Attestors;
use crate::audit::Audit;
use crate::ca::{Authority, Published, Reloader, SignerFault};
use crate::sources::Source;
use crate::sources::kubernetes::TaintKey;
use crate::sources::manifests::Watcher;
use crate::tokens::TokenStore;
use crate::trust;
use crate::trust::crl::CrlFiles;
pub use kubernetes::KubernetesOptions;
pub use lists::Fetches;
pub use signers::{Curve, SignerOptions};
pub use tokens::{TokenConfig, TokenOptions};

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Options of `run`, as given.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// Folder of manifests (*.yaml, *.yml, *.json): Namespace, ServiceAccount, Pod, Service, Node,
    /// EndpointSlice, AuthorizationPolicy, AuthenticationPolicy, ServicePolicy, WorkerBudget,
    /// Revocation.
    /// Changes are followed; a change with mistakes is logged and the last good state stays
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "cluster",
        conflicts_with = "cluster"
    )]
    pub manifests: Option<PathBuf>,
    /// Follow the Kubernetes API in place of a folder: in a pod as its service account, elsewhere as
    /// KUBECONFIG says. The mesh's own kinds must be installed (mesh-control definitions)
    #[arg(long = "kubernetes")]
    pub cluster: bool,
    /// Folder for the component's own state (join tokens, admin socket); made with mode 0700. Each
    /// replica has its own
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Folder of the nodes' tokens [default: tokens in --state-dir]. Replicas that share it, on one
    /// file system, let a join token in once between them; a replica with a folder of its own knows
    /// only the tokens that were made there
    #[arg(long, value_name = "DIR")]
    pub token_dir: Option<PathBuf>,
    /// SPIFFE trust domain, such as cluster.local
    #[arg(long, value_name = "DOMAIN")]
    pub trust_domain: String,
    /// PEM chain of the signing intermediate: it first, then what leads to the root
    #[arg(long, value_name = "FILE")]
    pub ca_cert: PathBuf,
    /// Private key of the intermediate: a PEM file of mode 0600, or the name of a key in a token,
    /// pkcs11:token=LABEL;object=LABEL?module-path=/FILE&pin-source=file:/FILE (or
    /// pin-source=credential:NAME, a file in $CREDENTIALS_DIRECTORY)
    #[arg(long, value_name = "FILE|URI")]
    pub ca_key: String,
    /// PEM of the root (or roots) that nodes and workloads trust
    #[arg(long, value_name = "FILE")]
    pub root: PathBuf,
    /// Another intermediate, for the workloads of a namespace (or of all whose names begin alike:
    /// team-a-*): a folder with tls.crt and tls.key, as a mounted Secret of type kubernetes.io/tls
    /// has them, or pkcs11.uri in place of tls.key. May be given several times; all must chain to
    /// --root
    #[arg(long, value_name = "NAMESPACE=DIR")]
    pub issuer: Vec<String>,
    /// How long a new root is distributed before an intermediate under it signs: a number with s,
    /// m, h or d. What is signed earlier would be refused by nodes that have not heard of the root
    #[arg(long, value_name = "TIME", default_value = "10m")]
    pub root_overlap: String,
    /// Address and port to serve on, such as 10.0.0.1:15012
    #[arg(long, value_name = "IP:PORT")]
    pub listen: String,
    /// Address and port to answer GET /livez on, over plain HTTP and to anybody, such as
    /// 10.0.0.1:15014. Everything else is for nodes alone
    #[arg(long, value_name = "IP:PORT")]
    pub health_listen: Option<SocketAddr>,
    /// Nodes that Kubernetes attests.
    #[command(flatten)]
    pub kubernetes: KubernetesOptions,
    /// DNS resolver that pods may ask whatever policy says, as the nodes' agents are told with
    /// the same option; `meshctl why` counts on it. The service kube-system/kube-dns and its
    /// endpoints are known. May be given several times
    #[arg(long, value_name = "IP")]
    pub resolver: Vec<IpAddr>,
    /// Certificate revocation list (PEM or DER) of a root or an intermediate of the mesh: what it
    /// lists is refused on every node. Changes of a file are followed; what is at an http:// or
    /// https:// URL is fetched again and again, and kept in --state-dir. May be given several times
    #[arg(long, value_name = "FILE|URL")]
    pub crl: Vec<String>,
    /// How often lists at URLs are fetched, besides when their nextUpdate has come: a number with s,
    /// m, h or d
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub crl_refresh: String,
    /// PEM of the roots that servers of https:// lists chain to
    #[arg(long, value_name = "FILE")]
    pub crl_server_root: Option<PathBuf>,
    /// How the log is written
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// All that is wrong with the options and the files they name.
#[derive(Debug)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "  {}", mistake.replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

/// What `run` needs, checked and loaded.
pub struct RunConfig {
    /// Where to serve.
    pub listen: SocketAddr,
    /// Who signs.
    pub authority: Arc<Authority>,
    /// Follows the signers' files.
    pub reloader: Reloader,
    /// Where refusals and grants are recorded.
    pub audit: Arc<Audit>,
    /// The tokens of nodes.
    pub tokens: TokenStore,
    /// Where the state of the mesh comes from.
    pub source: Source,
    /// Who finds out which node a caller is.
    pub attestors: Attestors,
    /// Where to answer whether it lives.
    pub health_listen: Option<SocketAddr>,
    /// The folder of the admin socket.
    pub state_dir: PathBuf,
    /// DNS resolvers beside the model's.
    pub resolvers: Vec<IpAddr>,
    /// What is trusted, and what is revoked.
    pub trust: trust::Sources,
    /// Follows the CRLs.
    pub crls: CrlFiles,
    /// Fetches those that are elsewhere.
    pub fetched: Fetches,
}

impl RunConfig {
    /// Checks the options and loads what they name.
    ///
    /// # Errors
    /// Every mistake there is, not only the first.
    pub fn validate(options: &RunOptions, now_s: i64) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut note = |option: &str, what: &dyn fmt::Display| {
            mistakes.push(format!("{option}: {what}"));
        };
        let listen = match options.listen.parse::<SocketAddr>() {
            Ok(address) => Some(address),
            Err(error) => {
                let given = &options.listen;
                note(
                    "--listen",
                    &format_args!("{given:?}: {error}; give IP:PORT"),
                );
                None
            }
        };
        let (option, tokens) = match &options.token_dir {
            Some(folder) => ("--token-dir", TokenStore::open_folder(folder.clone())),
            None => ("--state-dir", TokenStore::open(&options.state_dir)),
        };
        let tokens = tokens.map_err(|e| note(option, &e)).ok();
        let overlap_s = duration_s(&options.root_overlap);
        if overlap_s.is_none() {
            note("--root-overlap", &bad_time(&options.root_overlap));
        }
        let startup_taint = options.kubernetes.startup_taint.as_deref();
        let startup_taint = startup_taint.map(str::parse::<TaintKey>).transpose();
        let startup_taint = startup_taint.map_err(|e| note("--startup-taint", &e)).ok();
        let sources = signers::sources(options, &mut note);
        let trust_domain = options.trust_domain.parse::<TrustDomain>();
        let trust_domain = trust_domain.map_err(|e| note("--trust-domain", &e)).ok();
        // Files are checked under any trust domain when the given one is wrong, so that
        // their mistakes show in the same run.
        let checked = trust_domain.clone().or_else(|| "invalid".parse().ok());
        let (mut authority, mut source) = (None, None);
        if let Some(domain) = &checked {
            if let Some(sources) = sources {
                match Authority::open(&sources, domain, now_s) {
                    Ok(loaded) => authority = Some((loaded, sources)),
                    Err(SignerFault::TrustDomain { .. }) if trust_domain.is_none() => {}
                    Err(error) => note("signer", &error),
                }
            }
            source = match &options.manifests {
                None => startup_taint.map(|key| Source::kubernetes(domain.clone(), key)),
                Some(folder) => Watcher::start(folder, domain)
                    .map(|(watcher, registry)| Source::Manifests(watcher, registry))
                    .map_err(|error| note("--manifests", &format_args!("\n{error}")))
                    .ok(),
            };
        }
        let published = authority.as_ref().and_then(|(authority, _)| {
            let published = Published::open(&options.state_dir, &authority.roots(), now_s);
            published.map_err(|e| note("--state-dir", &e)).ok()
        });
        let accounts = options.kubernetes.accounts();
        let accounts = accounts
            .map_err(|e| note("--node-service-account", &e))
            .ok();
        let authority = authority.map(|(authority, sources)| (Arc::new(authority), sources));
        let crls = authority.as_ref().and_then(|(authority, _)| {
            let started = lists::start(options, authority, now_s);
            started.map_err(|e| note("--crl", &e)).ok()
        });
        let signer = authority.zip(published).zip(overlap_s).zip(crls);
        match (
            trust_domain.zip(accounts.as_ref()),
            listen,
            tokens,
            signer,
            source,
        ) {
            (Some(_), Some(listen), Some(tokens), Some(signer), Some(source)) => {
                let ((((authority, sources), published), overlap_s), (crls, fetched)) = signer;
                let audit = Arc::new(Audit::default());
                Ok(Self {
                    trust: trust::Sources {
                        roots: authority.bundle(),
                        revocations: source.revocations(),
                        listed: crls.listed(),
                    },
                    crls,
                    fetched,
                    listen,
                    reloader: Reloader::new(
                        authority.clone(),
                        sources,
                        published,
                        overlap_s,
                        audit.clone(),
                    ),
                    audit,
                    authority,
                    attestors: match accounts.flatten() {
                        Some(accounts) => {
                            Attestors::from(tokens.clone()).with_service_accounts(accounts)
                        }
                        None => tokens.clone().into(),
                    },
                    tokens,
                    health_listen: options.health_listen,
                    source,
                    state_dir: options.state_dir.clone(),
                    resolvers: options.resolver.clone(),
                })
            }
            _ => Err(Mistakes(mistakes)),
        }
    }
}

fn bad_time(given: &str) -> String {
    format!("{given:?} is not a time: a positive number with s, m, h or d, at most 30d")
}

fn duration_s(text: &str) -> Option<i64> {
    const MAX_S: i64 = 30 * 24 * 3600;
    let unit = text.chars().last()?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return None,
    };
    let number: i64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = number.checked_mul(factor)?;
    (1..=MAX_S).contains(&seconds).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::duration_s;

    #[test]
    fn times_are_numbers_with_a_unit() {
        for (text, expected) in [
            ("1s", Some(1)),
            ("15m", Some(900)),
            ("1h", Some(3600)),
            ("30d", Some(2_592_000)),
            ("31d", None),
            ("0s", None),
            ("-1h", None),
            ("1", None),
            ("h", None),
            ("", None),
            ("9223372036854775807d", None),
        ] {
            assert_eq!(duration_s(text), expected, "{text}");
        }
    }
}
