//! Tokens of a control component without an orchestrator: made by the operator, for one node.

use std::sync::Arc;

use super::{Attested, Evidence, NodeAttestor};
use crate::refusal::{Refusal, Refused};
use crate::tokens::{JOIN_PREFIX, NODE_PREFIX, TokenFault, TokenStore};

/// Join tokens: each good for one join.
#[derive(Clone, Debug)]
pub struct JoinTokens(pub TokenStore);

/// Node tokens: good for any number of calls until they expire, for clients that have no
/// certificate of a node's.
#[derive(Clone, Debug)]
pub struct NodeTokens(pub TokenStore);

#[tonic::async_trait]
impl NodeAttestor for JoinTokens {
    fn knows(&self, token: &str) -> bool {
        token.starts_with(JOIN_PREFIX)
    }

    async fn attest(&self, evidence: Evidence<'_>) -> Result<Attested, Refused> {
        let node = evidence.node.unwrap_or_default();
        self.0
            .consume(evidence.token, node, evidence.now_s)
            .map_err(|fault| refused(&fault))?;
        Ok(Attested {
            node: node.to_owned(),
            not_after_s: evidence.now_s,
            by: "join token".to_owned(),
        })
    }
}

#[tonic::async_trait]
impl NodeAttestor for NodeTokens {
    fn knows(&self, token: &str) -> bool {
        token.starts_with(NODE_PREFIX)
    }

    async fn attest(&self, evidence: Evidence<'_>) -> Result<Attested, Refused> {
        let bearer = self.0.bearer(evidence.token, evidence.now_s);
        let (node, not_after_s) = bearer.map_err(|fault| refused(&fault))?;
        Ok(Attested {
            node,
            not_after_s,
            by: "node token".to_owned(),
        })
    }
}

fn refused(fault: &TokenFault) -> Refused {
    let refusal = match fault {
        TokenFault::Malformed => Refusal::TokenMalformed,
        TokenFault::Unknown => Refusal::TokenUnknown,
        TokenFault::Used => Refusal::TokenUsed,
        TokenFault::Expired => Refusal::TokenExpired,
        TokenFault::WrongNode(_) => Refusal::TokenWrongNode,
        TokenFault::Store { .. } | TokenFault::Permissions { .. } | TokenFault::Random => {
            tracing::error!(error = %fault, "a token could not be looked up");
            let what = "the token store failed; see the log of the control component";
            return Refused::new(Refusal::AttestorFailed, what);
        }
    };
    Refused::new(refusal, fault.to_string())
}

impl From<TokenStore> for super::Attestors {
    /// What a standalone control component takes.
    fn from(tokens: TokenStore) -> Self {
        Self::default()
            .for_joins(Arc::new(JoinTokens(tokens.clone())))
            .for_calls(Arc::new(NodeTokens(tokens)))
    }
}
