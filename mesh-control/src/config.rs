//! Options: raw from the command line, validated in one place, all mistakes reported at once.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use mesh_core::identity::{NodeIdentity, TrustDomain};

use crate::ca::{Authority, SignerFiles};
use crate::registry::Registry;
use crate::sources::manifests::Watcher;
use crate::tokens::TokenStore;

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
    /// PEM private key of the intermediate; mode 0600
    #[arg(long, value_name = "FILE")]
    pub ca_key: PathBuf,
    /// PEM of the root (or roots) that nodes and workloads trust
    #[arg(long, value_name = "FILE")]
    pub root: PathBuf,
    /// Address and port to serve on, such as 10.0.0.1:15012
    #[arg(long, value_name = "IP:PORT")]
    pub listen: String,
    /// DNS resolver that pods may ask whatever policy says, as the nodes' agents are told with
    /// the same option; `meshctl why` counts on it. The service kube-system/kube-dns and its
    /// endpoints are known. May be given several times
    #[arg(long, value_name = "IP")]
    pub resolver: Vec<IpAddr>,
    /// How the log is written
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
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
    /// The join tokens.
    pub tokens: TokenStore,
    /// Follows the manifests.
    pub watcher: Watcher,
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
        let trust_domain = options.trust_domain.parse::<TrustDomain>();
        let trust_domain = trust_domain.map_err(|e| note("--trust-domain", &e)).ok();
        // Files are checked under any trust domain when the given one is wrong, so that
        // their mistakes show in the same run.
        let checked = trust_domain.clone().or_else(|| "invalid".parse().ok());
        let (mut authority, mut manifests) = (None, None);
        if let Some(domain) = &checked {
            let files = SignerFiles {
                ca_cert: &options.ca_cert,
                ca_key: &options.ca_key,
                root: &options.root,
            };
            match Authority::load(&files, domain, now_s) {
                Ok(loaded) => authority = Some(loaded),
                Err(crate::ca::SignerFault::TrustDomain { .. }) if trust_domain.is_none() => {}
                Err(error) => note("signer", &error),
            }
            match Watcher::start(&options.manifests, domain) {
                Ok(started) => manifests = Some(started),
                Err(error) => note("--manifests", &format_args!("\n{error}")),
            }
        }
        match (trust_domain, listen, tokens, authority, manifests) {
            (Some(_), Some(listen), Some(tokens), Some(authority), Some((watcher, registry))) => {
                Ok(Self {
                    listen,
                    authority: Arc::new(authority),
                    tokens,
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
            mistakes.push(format!(
                "--ttl: {:?} is not a time: a positive number with s, m, h or d, at most 30d",
                options.ttl
            ));
        }
        let tokens = TokenStore::open(&options.state_dir)
            .map_err(|e| mistakes.push(format!("--state-dir: {e}")));
        match (ttl_s, tokens) {
            (Some(ttl_s), Ok(tokens)) if mistakes.is_empty() => Ok(Self {
                tokens,
                node: options.node.clone(),
                not_after_s: now_s + ttl_s,
            }),
            _ => Err(Mistakes(mistakes)),
        }
    }
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
