//! Options of tokens.

use std::path::PathBuf;

use clap::Args;
use mesh_core::identity::{NodeIdentity, TrustDomain};

use super::{Mistakes, bad_time, duration_s};
use crate::tokens::{TokenStore, Use};

/// Options of `token create`, as given.
#[derive(Args, Clone, Debug)]
pub struct TokenOptions {
    /// The state folder of the control component
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "token_dir",
        conflicts_with = "token_dir"
    )]
    pub state_dir: Option<PathBuf>,
    /// The folder of tokens, where the component was given one
    #[arg(long, value_name = "DIR")]
    pub token_dir: Option<PathBuf>,
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
        let (option, tokens) = match (&options.token_dir, &options.state_dir) {
            (Some(folder), _) => ("--token-dir", TokenStore::open_folder(folder.clone())),
            (None, Some(folder)) => ("--state-dir", TokenStore::open(folder)),
            (None, None) => return Err(Mistakes(vec!["--state-dir is missing".to_owned()])),
        };
        let tokens = tokens.map_err(|e| mistakes.push(format!("{option}: {e}")));
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
