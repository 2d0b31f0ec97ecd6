//! The connection to the control component, with the node's certificate, kept valid.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::transport::Channel;

use super::backoff::{Backoff, random};
use super::config::Config;
use super::join::{self, JoinError, NodeCredential, chain, now_s};
use super::report::ControlReport;
use super::trust::{Bundle, TrustStore};

pub(super) const FIRST_RETRY: Duration = Duration::from_millis(200);
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// What the rest of the supervisor has of control.
#[derive(Debug)]
pub(super) struct Control {
    channel: watch::Sender<Option<Channel>>,
    trust: Arc<TrustStore>,
    report: Mutex<ControlReport>,
}

impl Control {
    pub(super) fn new(trust: Arc<TrustStore>) -> Arc<Self> {
        gauge!("nodemesh_control_connected").set(0.0);
        Arc::new(Self {
            channel: watch::Sender::new(None),
            trust,
            report: Mutex::default(),
        })
    }

    /// Certificates to come: the channel is another one then.
    pub(super) fn renewals(&self) -> watch::Receiver<Option<Channel>> {
        self.channel.subscribe()
    }

    /// A channel with the node's current certificate; waits until there is one.
    pub(super) async fn channel(&self) -> Channel {
        let mut channel = self.channel.subscribe();
        loop {
            if let Some(channel) = channel.borrow_and_update().clone() {
                return channel;
            }
            if channel.changed().await.is_err() {
                // The sender is in `self`.
                unreachable!("control's channel outlives its users");
            }
        }
    }

    pub(super) fn report(&self) -> ControlReport {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut ControlReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn set_connected(&self, connected: bool) {
        gauge!("nodemesh_control_connected").set(f64::from(u8::from(connected)));
        self.tell(|report| report.connected = connected);
    }

    pub(super) fn trouble(&self, what: &str, why: &str, wait: Duration) {
        let retry_ms = wait.as_millis();
        tracing::warn!(
            error = why,
            retry_ms,
            "control: {what}; the last good state stays"
        );
        self.tell(|report| report.last_error = format!("{what}: {why}"));
    }

    /// Keeps the node's certificate valid, for ever, and control's held against what is trusted.
    pub(super) async fn keep_credential(self: Arc<Self>, config: Arc<Config>) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut current: Option<NodeCredential> = None;
        loop {
            match self.next_credential(&config, current.as_ref()).await {
                Ok(credential) => {
                    backoff.reset();
                    self.use_until_renewal(&config, &credential).await;
                    current = Some(credential);
                }
                Err(e) => {
                    let wait = backoff.next(random());
                    self.trouble("no node certificate", &chain(&e), wait);
                    current = current.filter(|c| c.not_after_s > now_s());
                    sleep(wait).await;
                }
            }
        }
    }

    /// Connects with this certificate until it is to be renewed, anew whenever other roots are
    /// trusted.
    async fn use_until_renewal(&self, config: &Config, credential: &NodeCredential) {
        let wait_s = (credential.renew_at_s() - now_s()).max(1);
        let mut renewal = pin!(sleep(Duration::from_secs(wait_s.unsigned_abs())));
        let mut changes = self.trust.changes();
        let mut roots = None;
        loop {
            let trusted = changes.borrow_and_update().clone();
            if roots.as_ref() != Some(&trusted.roots) {
                if let Err(e) = self.install(config, credential, &trusted) {
                    tracing::error!(error = %e, "control: the node's certificate can't be used");
                }
                roots = Some(trusted.roots.clone());
            }
            tokio::select! {
                () = &mut renewal => return,
                // The sender is in `self`.
                _ = changes.changed() => {}
            }
        }
    }

    async fn next_credential(
        &self,
        config: &Config,
        current: Option<&NodeCredential>,
    ) -> Result<NodeCredential, JoinError> {
        if current.is_some() {
            counter!("nodemesh_node_certificate_renewals_total").increment(1);
            return join::renew(config, self.channel().await).await;
        }
        match NodeCredential::load(&config.state_dir, &config.node) {
            Ok(credential) => Ok(credential),
            Err(why) => join::join(config, &self.trust.bundle(), &why).await,
        }
    }

    fn install(
        &self,
        config: &Config,
        credential: &NodeCredential,
        trusted: &Bundle,
    ) -> Result<(), JoinError> {
        let channel = credential.channel(config, trusted)?;
        tracing::info!(
            not_after_s = credential.not_after_s,
            "control: node certificate in use"
        );
        self.tell(|r| r.node_certificate_not_after_s = Some(credential.not_after_s));
        self.channel.send_replace(Some(channel));
        Ok(())
    }
}
