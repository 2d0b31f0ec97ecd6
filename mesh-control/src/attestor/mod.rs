//! Which node a caller is: attestors, each for one kind of token.
//!
//! A node has no certificate before it has joined, and a stock ztunnel never has one. Both show a
//! token: to [`Attestors::join`], which gives a node its certificate for it, or with every call
//! ([`Attestors::bearer`]).

mod api_server;
mod kubernetes;
mod standalone;

use std::sync::Arc;

use crate::refusal::{Refusal, Refused};
pub use api_server::{ApiFault, ApiServer};
pub use kubernetes::ServiceAccounts;
pub use standalone::{JoinTokens, NodeTokens};

/// A token, and what its bearer says of itself.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// The secret.
    pub token: &'a str,
    /// The node that the caller says it is; a bearer's call says nothing.
    pub node: Option<&'a str>,
    /// Now, in seconds since the epoch.
    pub now_s: i64,
}

/// A node that has been attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// Its name, as the attestor knows it.
    pub node: String,
    /// Until when the token speaks for it, in seconds since the epoch.
    pub not_after_s: i64,
    /// By what, for the audit log.
    pub by: String,
}

/// Finds out which node holds a token.
#[tonic::async_trait]
pub trait NodeAttestor: Send + Sync {
    /// Whether a token is of the kind that it knows, by its form alone.
    fn knows(&self, token: &str) -> bool;

    /// The node that holds the token. A single-use token is spent by it.
    ///
    /// # Errors
    /// Why it is not taken.
    async fn attest(&self, evidence: Evidence<'_>) -> Result<Attested, Refused>;
}

/// The attestors that a control component has.
#[derive(Clone, Default)]
pub struct Attestors {
    join: Vec<Arc<dyn NodeAttestor>>,
    bearer: Vec<Arc<dyn NodeAttestor>>,
}

impl Attestors {
    /// Takes an attestor for joins.
    #[must_use]
    pub fn for_joins(mut self, attestor: Arc<dyn NodeAttestor>) -> Self {
        self.join.push(attestor);
        self
    }

    /// Takes an attestor for calls that bear a token.
    #[must_use]
    pub fn for_calls(mut self, attestor: Arc<dyn NodeAttestor>) -> Self {
        self.bearer.push(attestor);
        self
    }

    /// The node that joins.
    ///
    /// # Errors
    /// Why it may not.
    pub async fn join(&self, evidence: Evidence<'_>) -> Result<Attested, Refused> {
        let attested = ask(
            &self.join,
            evidence,
            "not a join token; make one with: mesh-control token create --node <name>",
        )
        .await?;
        match evidence.node {
            Some(claimed) if claimed != attested.node => Err(Refused::new(
                Refusal::TokenWrongNode,
                format!("the token was made for another node than {claimed}"),
            )),
            _ => Ok(attested),
        }
    }

    /// The node that bears a token.
    ///
    /// # Errors
    /// Why it speaks for none.
    pub async fn bearer(&self, evidence: Evidence<'_>) -> Result<Attested, Refused> {
        ask(
            &self.bearer,
            evidence,
            "not a token that calls are made with; make one with: mesh-control token create --node <name> --reusable",
        )
        .await
    }
}

async fn ask(
    attestors: &[Arc<dyn NodeAttestor>],
    evidence: Evidence<'_>,
    otherwise: &str,
) -> Result<Attested, Refused> {
    let known = attestors.iter().find(|a| a.knows(evidence.token));
    let attestor = known.ok_or_else(|| Refused::new(Refusal::TokenMalformed, otherwise))?;
    attestor.attest(evidence).await
}
