//! The pod's certificate: asked for, checked, renewed in time.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::convert::trust::read_into;
use mesh_api::worker::{CertificateRequest, TrustBundle, to_supervisor::Message};
use mesh_core::certificate::CLOCK_SKEW_S;
use mesh_core::revocation::Revocations;
use tokio::time::Instant;

use super::context::Context;
use super::key::PodKey;
use super::metrics::Count;
use super::tls::{Credentials, Trust, now_s};

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
    trust: Option<Arc<Trust>>,
    /// Parts of a trust bundle that is coming in.
    bundle: Vec<TrustBundle>,
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
            trust: None,
            bundle: Vec::new(),
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
        let mut changes = self.context.trust_changes.subscribe();
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
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The clock may have been set. The sender lives as long as `self`.
                _ = changes.changed() => {}
            }
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

    /// A certificate was pushed. True when a new one is in use.
    pub(crate) fn certificate(&mut self, chain: Vec<Vec<u8>>) -> bool {
        self.apply(Some(chain), None)
    }

    /// A trust bundle was pushed, or a part of it. True when a new certificate is in use.
    pub(crate) fn trust_bundle(&mut self, part: TrustBundle) -> bool {
        let more = part.more;
        self.bundle.push(part);
        if more {
            return false;
        }
        let bundle = std::mem::take(&mut self.bundle);
        match self.read(bundle) {
            Ok(trust) => trust.is_some_and(|trust| self.apply(None, Some(trust))),
            Err(error) => {
                self.context.metrics.add(Count::TrustUnreadable, 1);
                tracing::error!(
                    error,
                    "the trust bundle that was pushed can't be used, the one before it stays in force; do the agent and control come from the same release?"
                );
                false
            }
        }
    }

    /// The supervisor is another one: what an earlier one began it does not end.
    pub(crate) fn begin_anew(&mut self) {
        self.bundle.clear();
    }

    /// A whole bundle, if it is another than the one in use.
    fn read(&self, parts: Vec<TrustBundle>) -> Result<Option<Arc<Trust>>, String> {
        let (mut roots, mut revocations) = (Vec::new(), Revocations::default());
        for part in parts {
            roots.extend(part.roots);
            for revoked in &part.revocations {
                read_into(&mut revocations, revoked).map_err(|e| e.to_string())?;
            }
        }
        let in_use = self.trust.as_ref();
        if in_use.is_some_and(|trust| trust.is(&roots, &revocations)) {
            return Ok(None);
        }
        let trust_domain = self.context.pod.identity.trust_domain();
        let trust = Trust::new(roots, revocations, trust_domain);
        trust.map(Some).map_err(|e| e.to_string())
    }

    /// What is new and good is used; what is not leaves the last good state.
    fn apply(&mut self, chain: Option<Vec<Vec<u8>>>, trust: Option<Arc<Trust>>) -> bool {
        let in_use = self.context.credentials().is_some();
        let same = |new: &Vec<Vec<u8>>| self.chain.as_ref() == Some(new);
        if in_use && trust.is_none() && chain.as_ref().is_none_or(same) {
            return false;
        }
        let new_chain = chain.is_some();
        // What peers are held against holds whatever becomes of the certificate.
        self.trust = trust.or_else(|| self.trust.take());
        let chain = chain.or_else(|| self.chain.clone());
        let (Some(chain), Some(trust)) = (&chain, &self.trust) else {
            self.chain = chain;
            return false;
        };
        let identity = &self.context.pod.identity;
        match Credentials::new(&self.key, chain, trust, identity, now_s()) {
            Ok(credentials) => {
                self.chain = Some(chain.clone());
                if new_chain || self.renew_at_s.is_none() {
                    self.adopt(&credentials);
                }
                self.context.set_credentials(&credentials)
            }
            Err(error) => {
                tracing::error!(%error, "what was pushed can't be used");
                if !in_use {
                    // The other half may be fine.
                    self.chain = None;
                }
                if new_chain {
                    self.renew_at_s = None;
                    self.try_later();
                }
                false
            }
        }
    }

    fn adopt(&mut self, credentials: &Credentials) {
        let (not_before_s, not_after_s) = credentials.validity_s();
        let per_mille = RENEW_AFTER + i64::from(random_below_256()) * RENEW_JITTER / 256;
        // It begins early for peers whose clock is behind; of a short life that is most.
        let issued_s = now_s().min(not_before_s + CLOCK_SKEW_S);
        let life_s = not_after_s - issued_s;
        self.renew_at_s = Some(issued_s + life_s * per_mille / 1000);
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
