//! Options: raw from the command line, validated in one place, all mistakes reported at once.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use mesh_core::identity::{NodeIdentity, TrustDomain};

use crate::attestor::{ApiServer, Attestors, ServiceAccounts};
use crate::audit::Audit;
use crate::ca::signer::{KeyKind, KeySource, Pkcs11Uri};
use crate::ca::{
    Authority, IntermediateSource, NamespaceScope, Published, Reloader, ScopeFault, SignerFault,
    SignerSources,
};
use crate::registry::Registry;
use crate::sources::manifests::Watcher;
use crate::tokens::{TokenStore, Use};

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
    /// AuthorizationPolicy, AuthenticationPolicy, ServicePolicy.
    /// Changes are followed; a change with mistakes is logged and the last good state stays
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Folder for the component's own state (join tokens, admin socket); made with mode 0700
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
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
    /// How the log is written
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Options of attestation by Kubernetes, as given.
#[derive(Args, Clone, Debug)]
pub struct KubernetesOptions {
    /// Service account that speaks for the nodes its pods are on, as NAMESPACE/NAME: such a pod
    /// joins, or calls, with its bound token, which the API server is asked about (TokenReview).
    /// May be given several times
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub node_service_account: Vec<String>,
    /// Audience that those tokens are for
    #[arg(long, value_name = "AUDIENCE", default_value = "nodemesh-control")]
    pub token_audience: String,
    /// The API server
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://kubernetes.default.svc"
    )]
    pub kubernetes_api: String,
    /// PEM of the CAs of the API server's certificate
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub kubernetes_ca: PathBuf,
    /// Control's own token for it, read anew for each question
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub kubernetes_token: PathBuf,
}

impl KubernetesOptions {
    /// The attestor, if any account is named.
    fn accounts(&self) -> Result<Option<ServiceAccounts>, String> {
        if self.node_service_account.is_empty() {
            return Ok(None);
        }
        for account in &self.node_service_account {
            let parts: Vec<_> = account.split('/').collect();
            if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) {
                return Err(format!("{account:?}: give NAMESPACE/NAME"));
            }
        }
        let (ca, token) = (&self.kubernetes_ca, &self.kubernetes_token);
        let api = ApiServer::new(&self.kubernetes_api, ca, token).map_err(|e| e.to_string())?;
        let accounts = self.node_service_account.iter().cloned();
        Ok(Some(ServiceAccounts::new(
            api,
            &self.token_audience,
            accounts,
        )))
    }
}

/// Options of `token create`, as given.
#[derive(Args, Clone, Debug)]
pub struct TokenOptions {
    /// The state folder of the control component
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Name of the node the token is for, as in spec.nodeName of its pods
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// How long it may be used: a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub ttl: String,
    /// A token to make calls with, any number of times until it expires, instead of one to join
    /// with: for a client without a node's certificate, such as a ztunnel. Whoever has it is that
    /// node
    #[arg(long)]
    pub reusable: bool,
}

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
    /// Follows the manifests.
    pub watcher: Watcher,
    /// Who finds out which node a caller is.
    pub attestors: Attestors,
    /// Where to answer whether it lives.
    pub health_listen: Option<SocketAddr>,
    /// The folder of the admin socket.
    pub state_dir: PathBuf,
    /// DNS resolvers beside the model's.
    pub resolvers: Vec<IpAddr>,
    /// The state of the mesh.
    pub registry: Arc<Registry>,
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
        let tokens = TokenStore::open(&options.state_dir)
            .map_err(|e| note("--state-dir", &e))
            .ok();
        let overlap_s = duration_s(&options.root_overlap);
        if overlap_s.is_none() {
            note("--root-overlap", &bad_time(&options.root_overlap));
        }
        let sources = signer_sources(options, &mut note);
        let trust_domain = options.trust_domain.parse::<TrustDomain>();
        let trust_domain = trust_domain.map_err(|e| note("--trust-domain", &e)).ok();
        // Files are checked under any trust domain when the given one is wrong, so that
        // their mistakes show in the same run.
        let checked = trust_domain.clone().or_else(|| "invalid".parse().ok());
        let (mut authority, mut manifests) = (None, None);
        if let Some(domain) = &checked {
            if let Some(sources) = sources {
                match Authority::open(&sources, domain, now_s) {
                    Ok(loaded) => authority = Some((loaded, sources)),
                    Err(SignerFault::TrustDomain { .. }) if trust_domain.is_none() => {}
                    Err(error) => note("signer", &error),
                }
            }
            match Watcher::start(&options.manifests, domain) {
                Ok(started) => manifests = Some(started),
                Err(error) => note("--manifests", &format_args!("\n{error}")),
            }
        }
        let published = authority.as_ref().and_then(|(authority, _)| {
            let published = Published::open(&options.state_dir, &authority.roots(), now_s);
            published.map_err(|e| note("--state-dir", &e)).ok()
        });
        let accounts = options.kubernetes.accounts();
        let accounts = accounts
            .map_err(|e| note("--node-service-account", &e))
            .ok();
        let signer = authority.zip(published).zip(overlap_s);
        match (
            trust_domain.zip(accounts.as_ref()),
            listen,
            tokens,
            signer,
            manifests,
        ) {
            (Some(_), Some(listen), Some(tokens), Some(signer), Some((watcher, registry))) => {
                let (((authority, sources), published), overlap_s) = signer;
                let authority = Arc::new(authority);
                let audit = Arc::new(Audit::default());
                Ok(Self {
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
                    watcher,
                    state_dir: options.state_dir.clone(),
                    resolvers: options.resolver.clone(),
                    registry,
                })
            }
            _ => Err(Mistakes(mistakes)),
        }
    }
}

/// What `token create` needs, checked.
#[derive(Debug)]
pub struct TokenConfig {
    /// The join tokens.
    pub tokens: TokenStore,
    /// The node's name.
    pub node: String,
    /// What it is good for.
    pub purpose: Use,
    /// When the token ends, in seconds since the epoch.
    pub not_after_s: i64,
}

impl TokenConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// Every mistake there is.
    pub fn validate(options: &TokenOptions, now_s: i64) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let domain = "any".parse::<TrustDomain>();
        if let Err(error) = domain.and_then(|domain| NodeIdentity::new(domain, &options.node)) {
            mistakes.push(format!("--node: {error}"));
        }
        let ttl_s = duration_s(&options.ttl);
        if ttl_s.is_none() {
            mistakes.push(format!("--ttl: {}", bad_time(&options.ttl)));
        }
        let tokens = TokenStore::open(&options.state_dir)
            .map_err(|e| mistakes.push(format!("--state-dir: {e}")));
        match (ttl_s, tokens) {
            (Some(ttl_s), Ok(tokens)) if mistakes.is_empty() => Ok(Self {
                tokens,
                node: options.node.clone(),
                purpose: match options.reusable {
                    true => Use::Calls,
                    false => Use::Join,
                },
                not_after_s: now_s + ttl_s,
            }),
            _ => Err(Mistakes(mistakes)),
        }
    }
}

/// Where the signers are, by the options.
fn signer_sources(
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
