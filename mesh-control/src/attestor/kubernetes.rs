//! Service account tokens of Kubernetes, bound to a pod on a node: the API server is asked whose
//! they are (TokenReview), and has to be told which service accounts may speak for their nodes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::api_server::{ApiFault, ApiServer};
use super::{Attested, Evidence, NodeAttestor};
use crate::refusal::{Refusal, Refused};

/// How long an answer counts. A token that is taken back meanwhile still speaks for so long.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Answers kept: two agents on each of many nodes.
const KEPT: usize = 16_384;
/// Questions at a time.
const MAX_ASKED: usize = 16;
/// How long a token speaks for its node that does not say when it ends, in seconds.
const UNKNOWN_LIFETIME_S: i64 = 600;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";

/// Attests nodes by the service account token of a pod on them.
pub struct ServiceAccounts {
    api: ApiServer,
    audience: String,
    /// `<namespace>/<name>`: whoever runs as one of these on a node speaks for the node.
    accounts: BTreeSet<String>,
    room: Semaphore,
    known: Mutex<HashMap<Vec<u8>, (Instant, Attested)>>,
}

/// What a token says of itself. Only the API server can say whether it is true; this is asked
/// first, so that nobody makes control ask about what can't be.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Value,
    exp: Option<i64>,
}

/// The part of a TokenReview's status that is decided on.
#[derive(Default, Deserialize)]
struct ReviewStatus {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    user: User,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    error: String,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: HashMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: ReviewStatus,
}

#[derive(Serialize)]
struct Spec<'a> {
    token: &'a str,
    audiences: [&'a str; 1],
}

impl ServiceAccounts {
    /// Takes tokens for `audience` of the service accounts `accounts`, `<namespace>/<name>` each.
    #[must_use]
    pub fn new(
        api: ApiServer,
        audience: impl Into<String>,
        accounts: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            api,
            audience: audience.into(),
            accounts: accounts.into_iter().collect(),
            room: Semaphore::new(MAX_ASKED),
            known: Mutex::default(),
        }
    }

    /// What can be said of a token without asking anybody; until when it says it is good.
    fn look(&self, token: &str, now_s: i64) -> Result<i64, Refused> {
        let malformed = || {
            let what = "not a service account token: it is no JSON web token";
            Refused::new(Refusal::TokenMalformed, what)
        };
        let claims = claims(token).ok_or_else(malformed)?;
        let for_us = match &claims.aud {
            Value::String(audience) => *audience == self.audience,
            Value::Array(audiences) => audiences.iter().any(|a| *a == *self.audience),
            _ => false,
        };
        if !for_us {
            return Err(self.wrong_audience());
        }
        let not_after_s = claims.exp.unwrap_or(now_s + UNKNOWN_LIFETIME_S);
        if not_after_s <= now_s {
            let what = "the service account token has expired";
            return Err(Refused::new(Refusal::TokenExpired, what));
        }
        Ok(not_after_s)
    }

    fn wrong_audience(&self) -> Refused {
        let audience = &self.audience;
        let what = format!(
            "the service account token is not for audience {audience:?}: project one that is"
        );
        Refused::new(Refusal::TokenAudience, what)
    }

    async fn review(&self, token: &str) -> Result<ReviewStatus, Refused> {
        let failed = |error: &ApiFault| {
            tracing::error!(%error, "a token could not be reviewed");
            let what = "the API server could not be asked about the token; \
                        see the log of the control component";
            Refused::new(Refusal::AttestorFailed, what)
        };
        let spec = Spec {
            token,
            audiences: [&self.audience],
        };
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": spec,
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let _place = self.room.acquire().await;
        let answer = self.api.create(path, &review).await;
        let answer = answer.map_err(|error| failed(&error))?;
        let review: Review = serde_json::from_slice(&answer)
            .map_err(|e| failed(&ApiFault::Answer(e.to_string())))?;
        Ok(review.status)
    }

    /// The node that a reviewed token is bound to.
    fn judge(&self, status: &ReviewStatus, not_after_s: i64) -> Result<Attested, Refused> {
        if !status.authenticated {
            let why = match status.error.as_str() {
                "" => "it does not say why",
                why => why,
            };
            let what = format!("the API server does not vouch for the token: {why}");
            return Err(Refused::new(Refusal::TokenRejected, what));
        }
        if !status.audiences.contains(&self.audience) {
            return Err(self.wrong_audience());
        }
        let user = &status.user;
        let account = user.username.strip_prefix("system:serviceaccount:");
        let account = account.map(|account| account.replacen(':', "/", 1));
        let Some(account) = account.filter(|account| self.accounts.contains(account)) else {
            let what = format!(
                "{:?} may not speak for nodes: name the agents' service account with \
                 --node-service-account",
                user.username
            );
            return Err(Refused::new(Refusal::TokenAccount, what));
        };
        let claim = |name: &str| match user.extra.get(name).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Ok(value.clone()),
            _ => Err(Refused::new(
                Refusal::TokenUnbound,
                format!(
                    "the token of {account} has no {name}: it must be projected into a pod, \
                     by Kubernetes 1.30 or later"
                ),
            )),
        };
        let (pod, _) = (claim(POD_NAME)?, claim(POD_UID)?);
        let (node, uid) = (claim(NODE_NAME)?, claim(NODE_UID)?);
        Ok(Attested {
            by: format!("service account {account}, pod {pod}, node uid {uid}"),
            node,
            not_after_s,
        })
    }

    fn remembered(&self, key: &[u8], now: Instant) -> Option<Attested> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, attested) = known.get(key)?;
        let fresh = now.duration_since(*since) < KEPT_FOR;
        fresh.then(|| attested.clone())
    }

    fn remember(&self, key: Vec<u8>, attested: Attested, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.retain(|_, (since, _)| now.duration_since(*since) < KEPT_FOR);
        }
        if known.len() < KEPT {
            known.insert(key, (now, attested));
        }
    }
}

#[tonic::async_trait]
impl NodeAttestor for ServiceAccounts {
    fn knows(&self, token: &str) -> bool {
        token.split('.').count() == 3
    }

    async fn attest(&self, evidence: Evidence<'_>) -> Result<Attested, Refused> {
        let Evidence { token, now_s, .. } = evidence;
        let not_after_s = self.look(token, now_s)?;
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        let now = Instant::now();
        if let Some(attested) = self.remembered(&key, now) {
            return Ok(attested);
        }
        let attested = self.judge(&self.review(token).await?, not_after_s)?;
        self.remember(key, attested.clone(), now);
        Ok(attested)
    }
}

impl super::Attestors {
    /// Takes service accounts' tokens as well: to join with, and to make calls with.
    #[must_use]
    pub fn with_service_accounts(self, accounts: ServiceAccounts) -> Self {
        let accounts = Arc::new(accounts);
        self.for_joins(accounts.clone()).for_calls(accounts)
    }
}

/// The claims of a JSON web token, which nobody has verified.
fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_, payload) = (parts.next()?, parts.next()?);
    let payload = base64_url(payload)?;
    serde_json::from_slice(&payload).ok()
}

/// Undoes base64url without padding.
fn base64_url(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() * 3 / 4);
    for group in text.as_bytes().chunks(4) {
        let mut bits: u32 = 0;
        for byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        let bytes = bits.to_be_bytes();
        decoded.extend(&bytes[1..group.len().max(1)]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_undone() {
        assert_eq!(base64_url("eyJhIjoxfQ").as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(base64_url("_-8").as_deref(), Some(&[0xff, 0xef][..]));
        assert_eq!(base64_url("a+b"), None);
    }
}
