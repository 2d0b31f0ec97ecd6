//! The connections to the control component, with the node's certificate, kept valid.
//!
//! Control may have several replicas, which all say the same. One is in use, for all but reports,
//! which every replica is sent. It is left when its streams fail.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep};
use tonic::transport::Channel;

use super::backoff::{Backoff, random};
use super::config::Config;
use super::join::{self, JoinError, NodeCredential, chain, now_s};
use super::replicas::{Replicas, is_name, look_up};
use super::report::ControlReport;
use super::trust::{Bundle, TrustStore};

pub(super) const FIRST_RETRY: Duration = Duration::from_millis(200);
pub(super) const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// How often names of control are looked up again.
const LOOK_UP_EVERY: Duration = Duration::from_secs(10);
/// How often it is seen by the clock whether the certificate is to be renewed.
const LOOK_AT_CLOCK_EVERY: Duration = Duration::from_secs(60);
/// How long a replica is used at least whose streams are up, whatever else it fails at.
const STAY: Duration = Duration::from_secs(10);

/// One replica of control, with a way there.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) address: SocketAddr,
    pub(super) channel: Channel,
    /// By which of the pairs of certificate and roots, counted.
    made: u64,
}

impl PartialEq for Replica {
    fn eq(&self, other: &Self) -> bool {
        (self.address, self.made) == (other.address, other.made)
    }
}

/// What the rest of the supervisor has of control.
#[derive(Debug)]
pub(super) struct Control {
    in_use: watch::Sender<Option<Replica>>,
    all: watch::Sender<Vec<Replica>>,
    /// The replica that is to be left.
    leaving: watch::Sender<Option<SocketAddr>>,
    /// Since when the one in use is.
    since: Mutex<Instant>,
    trust: Arc<TrustStore>,
    report: Mutex<ControlReport>,
}

impl Control {
    pub(super) fn new(trust: Arc<TrustStore>) -> Arc<Self> {
        gauge!("nodemesh_control_connected").set(0.0);
        Arc::new(Self {
            in_use: watch::Sender::new(None),
            all: watch::Sender::default(),
            leaving: watch::Sender::new(None),
            since: Mutex::new(Instant::now()),
            trust,
            report: Mutex::default(),
        })
    }

    /// Ways to control that are to come: with another certificate, or to another replica.
    pub(super) fn renewals(&self) -> watch::Receiver<Option<Replica>> {
        self.in_use.subscribe()
    }

    /// All replicas, now and after each change.
    pub(super) fn replicas(&self) -> watch::Receiver<Vec<Replica>> {
        self.all.subscribe()
    }

    /// The replica in use, with the node's current certificate; waits until there is one.
    pub(super) async fn replica(&self) -> Replica {
        let mut in_use = self.in_use.subscribe();
        loop {
            if let Some(replica) = in_use.borrow_and_update().clone() {
                return replica;
            }
            if in_use.changed().await.is_err() {
                // The sender is in `self`.
                unreachable!("control's channel outlives its users");
            }
        }
    }

    /// Goes on to another replica, if this one is still in use: a stream of it has failed.
    pub(super) fn leave(&self, address: SocketAddr) {
        self.leaving.send_replace(Some(address));
    }

    /// The same for one whose streams may be up, and which fails at something else. Where all
    /// fail at that, the node does not hurry from one to the next.
    pub(super) fn leave_in_time(&self, address: SocketAddr) {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.elapsed() >= STAY {
            self.leave(address);
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
        let mut ways = Ways::default();
        self.look_up(&config, &mut ways).await;
        loop {
            let known = current.is_some();
            match self.next_credential(&config, &ways, known).await {
                Ok(credential) => {
                    backoff.reset();
                    // Nodes that were left with one replica spread out again.
                    ways.replicas.choose(random());
                    self.use_until_renewal(&config, &mut ways, &credential)
                        .await;
                    current = Some(credential);
                }
                Err(e) => {
                    let wait = backoff.next(random());
                    self.trouble("no node certificate", &chain(&e), wait);
                    current = current.filter(|c| c.not_after_s > now_s());
                    sleep(wait).await;
                    ways.replicas.go_on();
                    self.publish(&ways);
                    self.look_up(&config, &mut ways).await;
                }
            }
        }
    }

    /// Uses a certificate until it is to be renewed. All connections are made anew whenever other
    /// roots are trusted.
    async fn use_until_renewal(
        &self,
        config: &Config,
        ways: &mut Ways,
        credential: &NodeCredential,
    ) {
        let mut renewal = pin!(sleep(until_renewal(credential)));
        let mut changes = self.trust.changes();
        let mut leaving = self.leaving.subscribe();
        let mut look = interval_at(Instant::now() + LOOK_UP_EVERY, LOOK_UP_EVERY);
        let mut roots = None;
        self.tell(|r| r.node_certificate_not_after_s = Some(credential.not_after_s));
        tracing::info!(
            not_after_s = credential.not_after_s,
            "control: node certificate in use"
        );
        loop {
            let trusted = changes.borrow_and_update().clone();
            if roots.as_ref() != Some(&trusted.roots) {
                ways.begin_anew();
                roots = Some(trusted.roots.clone());
            }
            match ways.connect(credential, &trusted) {
                Ok(()) => self.publish(ways),
                Err(e) => {
                    tracing::error!(error = %e, "control: the node's certificate can't be used");
                }
            }
            tokio::select! {
                () = &mut renewal => {
                    if credential.renew_at_s() <= now_s() {
                        return;
                    }
                    renewal.as_mut().reset(Instant::now() + until_renewal(credential));
                }
                // The senders of both are in `self`.
                _ = changes.changed() => {}
                _ = leaving.changed() => {
                    if *leaving.borrow_and_update() == ways.replicas.in_use() {
                        ways.replicas.go_on();
                    }
                }
                _ = look.tick(), if config.control.iter().any(is_name) => {
                    self.look_up(config, ways).await;
                }
            }
        }
    }

    async fn look_up(&self, config: &Config, ways: &mut Ways) {
        let mut found = Vec::new();
        for addresses in look_up(&config.control).await {
            if let Err(why) = &addresses {
                tracing::warn!(
                    error = why,
                    "control: a name of it can't be looked up; the addresses before stay"
                );
                self.tell(|report| report.last_error.clone_from(why));
            }
            found.push(addresses.ok());
        }
        ways.replicas.update(found, random);
    }

    async fn next_credential(
        &self,
        config: &Config,
        ways: &Ways,
        known: bool,
    ) -> Result<NodeCredential, JoinError> {
        if known {
            counter!("nodemesh_node_certificate_renewals_total").increment(1);
            return join::renew(config, self.replica().await).await;
        }
        match NodeCredential::load(&config.state_dir, &config.node) {
            Ok(credential) => Ok(credential),
            Err(why) => {
                let replica = ways.replicas.in_use().ok_or(JoinError::NoAddress)?;
                join::join(config, replica, &self.trust.bundle(), &why).await
            }
        }
    }

    /// Shows the ways to the other tasks, those that are others than before.
    fn publish(&self, ways: &Ways) {
        let all: Vec<_> = ways.channels.values().cloned().collect();
        self.all.send_if_modified(|before| {
            let news = *before != all;
            *before = all;
            news
        });
        let in_use = ways.replicas.in_use();
        let Some(replica) = in_use.and_then(|address| ways.channels.get(&address)) else {
            return;
        };
        let before = self.in_use.borrow().clone();
        if before.as_ref() == Some(replica) {
            return;
        }
        if before.is_some_and(|before| before.address != replica.address) {
            counter!("nodemesh_control_moves_total").increment(1);
            tracing::info!(replica = %replica.address, "control: going over to another replica");
        }
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.tell(|report| report.replica = replica.address.to_string());
        self.in_use.send_replace(Some(replica.clone()));
    }
}

/// How long to sleep at most. Who slept on to the end by a clock that is set forward meanwhile would
/// be late by as much.
fn until_renewal(credential: &NodeCredential) -> Duration {
    let wait_s = u64::try_from(credential.renew_at_s() - now_s()).unwrap_or(0);
    Duration::from_secs(wait_s).clamp(Duration::from_secs(1), LOOK_AT_CLOCK_EVERY)
}

/// The ways to all replicas.
#[derive(Default)]
struct Ways {
    replicas: Replicas,
    channels: BTreeMap<SocketAddr, Replica>,
    made: u64,
}

impl Ways {
    /// Another certificate, or other roots: no connection goes on by those before.
    fn begin_anew(&mut self) {
        self.channels.clear();
        self.made += 1;
    }

    /// Sees to it that there is a way to each replica, and to no other.
    fn connect(&mut self, credential: &NodeCredential, trusted: &Bundle) -> Result<(), JoinError> {
        let known = self.replicas.all();
        self.channels.retain(|address, _| known.contains(address));
        for address in known {
            if !self.channels.contains_key(address) {
                let replica = Replica {
                    address: *address,
                    channel: credential.channel(*address, trusted)?,
                    made: self.made,
                };
                self.channels.insert(*address, replica);
            }
        }
        Ok(())
    }
}
