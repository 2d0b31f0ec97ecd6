//! The pod's certificate: asked for, checked, renewed in time.

use std::rc::Rc;
use std::time::Duration;

use mesh_api::worker::{CertificateRequest, to_supervisor::Message};
use tokio::time::Instant;

use super::context::Context;
use super::key::PodKey;
use super::tls::{Credentials, CredentialsError, now_s};

/// After a key was taken over the supervisor pushes the certificate that goes with it; this
/// long a worker waits for it before it asks for a new one.
const PUSH_EXPECTED_WITHIN: Duration = Duration::from_secs(1);
/// How long a request may stay without an answer before it is sent again.
const ANSWER_EXPECTED_WITHIN: Duration = Duration::from_secs(30);
/// Between requests that fail: at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Longest sleep; the wall clock may jump and a machine may have been suspended.
const LOOK_AT_CLOCK_EVERY: Duration = Duration::from_secs(60);
/// Share of a certificate's life, in per mille, after which it is renewed, and the jitter.
const RENEW_AFTER: i64 = 620;
const RENEW_JITTER: i64 = 90;

/// Keeps the pod's credentials current.
pub(crate) struct Certifier {
    context: Rc<Context>,
    key: PodKey,
    chain: Option<Vec<Vec<u8>>>,
    roots: Option<Vec<Vec<u8>>>,
    /// Not before this time is another request sent.
    not_before: Instant,
    /// Seconds since the epoch at which the certificate in use is to be renewed.
    renew_at_s: Option<i64>,
    retry: Duration,
}

impl Certifier {
    pub(crate) fn new(context: Rc<Context>, key: PodKey, taken_over: bool) -> Self {
        let wait = if taken_over {
            PUSH_EXPECTED_WITHIN
        } else {
            Duration::ZERO
        };
        Self {
            context,
            key,
            chain: None,
            roots: None,
            not_before: Instant::now() + wait,
            renew_at_s: None,
            retry: RETRY.0,
        }
    }

    pub(crate) fn key(&self) -> &PodKey {
        &self.key
    }

    /// Waits until a request is due.
    pub(crate) async fn due(&self) {
        loop {
            let now = Instant::now();
            let until_renewal = self
                .renew_at_s
                .map_or(0, |at| u64::try_from(at - now_s()).unwrap_or(0));
            let wait = Duration::from_secs(until_renewal)
                .max(self.not_before.saturating_duration_since(now))
                .min(LOOK_AT_CLOCK_EVERY);
            if wait.is_zero() {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a signing request.
    pub(crate) fn request(&mut self) {
        self.not_before = Instant::now() + ANSWER_EXPECTED_WITHIN;
        match self.key.signing_request(&self.context.pod.identity) {
            Ok(csr) => {
                let request = CertificateRequest { csr };
                if !self
                    .context
                    .outbox
                    .try_send(Message::CertificateRequest(request))
                {
                    self.try_later();
                }
            }
            Err(error) => {
                tracing::error!(%error, "no certificate can be asked for");
                self.try_later();
            }
        }
    }

    /// The control component said no, or could not be asked.
    pub(crate) fn refused(&mut self, why: &str) {
        tracing::warn!(why, "the pod's certificate was refused; asking again later");
        self.try_later();
    }

    fn try_later(&mut self) {
        self.not_before = Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(RETRY.1);
    }

    /// A certificate was pushed. True when new credentials are in use.
    pub(crate) fn certificate(&mut self, chain: Vec<Vec<u8>>) -> bool {
        self.apply(Some(chain), None)
    }

    /// A trust bundle was pushed. True when new credentials are in use.
    pub(crate) fn trust_bundle(&mut self, roots: Vec<Vec<u8>>) -> bool {
        self.apply(None, Some(roots))
    }

    /// What is new and good is used; what is not leaves the last good state.
    fn apply(&mut self, chain: Option<Vec<Vec<u8>>>, roots: Option<Vec<Vec<u8>>>) -> bool {
        let in_use = self.context.credentials().is_some();
        let unchanged = chain
            .as_ref()
            .is_none_or(|new| self.chain.as_ref() == Some(new))
            && roots
                .as_ref()
                .is_none_or(|new| self.roots.as_ref() == Some(new));
        if in_use && unchanged {
            return false;
        }
        let new_chain = chain.is_some();
        let chain = chain.or_else(|| self.chain.clone());
        let roots = roots.or_else(|| self.roots.clone());
        let (Some(chain), Some(roots)) = (&chain, &roots) else {
            (self.chain, self.roots) = (chain, roots);
            return false;
        };
        let identity = &self.context.pod.identity;
        match Credentials::new(&self.key, chain, roots, identity, now_s()) {
            Ok(credentials) => {
                self.adopt(&credentials);
                (self.chain, self.roots) = (Some(chain.clone()), Some(roots.clone()));
                self.context.set_credentials(credentials);
                true
            }
            Err(error) => {
                tracing::error!(%error, "what was pushed can't be used");
                if !matches!(error, CredentialsError::NoRoots) {
                    if !in_use {
                        // The other half may be fine.
                        self.roots = Some(roots.clone());
                        self.chain = None;
                    }
                    if new_chain {
                        self.renew_at_s = None;
                        self.try_later();
                    }
                }
                false
            }
        }
    }

    fn adopt(&mut self, credentials: &Credentials) {
        let (not_before_s, not_after_s) = credentials.validity_s();
        let per_mille = RENEW_AFTER + i64::from(random_below_256()) * RENEW_JITTER / 256;
        let life_s = not_after_s - not_before_s;
        self.renew_at_s = Some(not_before_s + life_s * per_mille / 1000);
        self.retry = RETRY.0;
        // A certificate that is due at once is not asked for in a loop.
        self.not_before = Instant::now() + RETRY.0;
    }
}

fn random_below_256() -> u8 {
    let mut byte = [0];
    // Without randomness every worker renews a little early, which harms nobody.
    let _unlucky = aws_lc_rs::rand::fill(&mut byte);
    byte[0]
}
