//! The connection to the control component: the node's certificate, kept valid, and the
//! one discovery stream. While control is away the last good state stays.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use mesh_api::ads::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_core::identity::TrustDomain;
use metrics::{counter, gauge};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Streaming;
use tonic::transport::Channel;

use super::backoff::{Backoff, random};
use super::config::Config;
use super::discovery::Discovery;
use super::join::{self, JoinError, NodeCredential, chain, explain, now_s, write_private};
use super::report::ControlReport;
use super::xds::{Change, XdsState};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// A stream that lived this long was a good one: the next attempt starts afresh.
const GOOD_STREAM: Duration = Duration::from_secs(10);
/// How long changes are gathered before the snapshot is written.
const SNAPSHOT_DELAY: Duration = Duration::from_millis(500);
/// Largest discovery response, in bytes.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
const SNAPSHOT_FILE: &str = "discovery.pb";

/// What the rest of the supervisor has of control.
#[derive(Debug)]
pub(super) struct Control {
    channel: watch::Sender<Option<Channel>>,
    report: Mutex<ControlReport>,
}

impl Control {
    pub(super) fn new() -> Arc<Self> {
        gauge!("nodemesh_control_connected").set(0.0);
        Arc::new(Self {
            channel: watch::Sender::new(None),
            report: Mutex::default(),
        })
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

    fn tell(&self, change: impl FnOnce(&mut ControlReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn set_connected(&self, connected: bool) {
        gauge!("nodemesh_control_connected").set(f64::from(u8::from(connected)));
        self.tell(|report| report.connected = connected);
    }

    fn trouble(&self, what: &str, why: &str, wait: Duration) {
        let retry_ms = wait.as_millis();
        tracing::warn!(
            error = why,
            retry_ms,
            "control: {what}; the last good state stays"
        );
        self.tell(|report| report.last_error = format!("{what}: {why}"));
    }

    /// Keeps the node's certificate valid, for ever.
    pub(super) async fn keep_credential(self: Arc<Self>, config: Arc<Config>) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut current: Option<NodeCredential> = None;
        loop {
            match self.next_credential(&config, current.as_ref()).await {
                Ok(credential) => {
                    backoff.reset();
                    if let Err(e) = self.install(&config, &credential) {
                        tracing::error!(error = %e, "control: the node's certificate can't be used");
                    }
                    let wait_s = (credential.renew_at_s() - now_s()).max(1);
                    current = Some(credential);
                    sleep(Duration::from_secs(wait_s.unsigned_abs())).await;
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
            Err(why) => join::join(config, &why).await,
        }
    }

    fn install(&self, config: &Config, credential: &NodeCredential) -> Result<(), JoinError> {
        let channel = credential.channel(config)?;
        tracing::info!(
            not_after_s = credential.not_after_s,
            "control: node certificate in use"
        );
        self.tell(|r| r.node_certificate_not_after_s = Some(credential.not_after_s));
        self.channel.send_replace(Some(channel));
        Ok(())
    }

    /// Follows discovery, for ever.
    pub(super) async fn follow(self: Arc<Self>, config: Arc<Config>, discovery: Arc<Discovery>) {
        let mut channel = self.channel.subscribe();
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut follower = Follower {
            control: &self,
            config: &config,
            discovery: &discovery,
            xds: None,
            snapshot_due: None,
            saved: None,
        };
        follower.restore();
        loop {
            let current = self.channel().await;
            channel.mark_unchanged();
            let started = Instant::now();
            let outcome = tokio::select! {
                outcome = follower.stream(current) => outcome,
                // A renewed certificate: go on with that one, at once.
                _ = channel.changed() => continue,
            };
            self.set_connected(false);
            if started.elapsed() >= GOOD_STREAM {
                backoff.reset();
            }
            let wait = backoff.next(random());
            self.trouble("no discovery", &outcome, wait);
            follower.save();
            sleep(wait).await;
        }
    }
}

/// The discovery stream's state over its lives.
struct Follower<'a> {
    control: &'a Control,
    config: &'a Config,
    discovery: &'a Discovery,
    xds: Option<XdsState>,
    snapshot_due: Option<Instant>,
    saved: Option<Instant>,
}

impl Follower<'_> {
    fn trust_domain(&self) -> Result<TrustDomain, String> {
        join::last_trust_domain(&self.config.state_dir)
    }

    /// Takes up the last good state of an earlier run, so that a node that starts while
    /// control is away serves its pods all the same.
    fn restore(&mut self) {
        let path = self.config.state_dir.join(SNAPSHOT_FILE);
        let (Ok(bytes), Ok(trust_domain)) = (std::fs::read(&path), self.trust_domain()) else {
            return;
        };
        match DeltaDiscoveryResponse::decode(bytes.as_slice()) {
            Ok(snapshot) => {
                let mut xds = XdsState::new(trust_domain);
                let applied = xds.apply(snapshot);
                tracing::info!(
                    resources = applied.changes.len(),
                    "control: going on from the last good state"
                );
                self.change(applied.changes);
                self.xds = Some(xds);
            }
            Err(e) => {
                tracing::warn!(error = %e, path = %path.display(), "control: snapshot unreadable, left out");
            }
        }
    }

    fn change(&mut self, changes: Vec<Change>) {
        self.discovery
            .update(|mesh| changes.into_iter().for_each(|change| change.apply(mesh)));
        let mesh = self.discovery.mesh();
        let (workloads, services) = (mesh.workloads().count(), mesh.services().count());
        drop(mesh);
        self.control.tell(|report| {
            report.synced = true;
            report.workloads = workloads;
            report.services = services;
        });
    }

    /// One stream, until it ends; returns why it did.
    async fn stream(&mut self, channel: Channel) -> String {
        if self.xds.is_none() {
            match self.trust_domain() {
                Ok(trust_domain) => self.xds = Some(XdsState::new(trust_domain)),
                Err(why) => return why,
            }
        }
        let (requests, responses) = match self.open(channel).await {
            Ok(opened) => opened,
            Err(status) => return explain(&status),
        };
        self.control.set_connected(true);
        self.control.tell(|report| report.last_error.clear());
        tracing::info!("control: discovery stream is up");
        self.receive(requests, responses).await
    }

    async fn open(
        &self,
        channel: Channel,
    ) -> Result<
        (
            mpsc::Sender<DeltaDiscoveryRequest>,
            Streaming<DeltaDiscoveryResponse>,
        ),
        tonic::Status,
    > {
        let (requests, mut outgoing) = mpsc::channel(16);
        if let Some(xds) = &self.xds {
            let _ = requests.try_send(xds.subscribe(&self.config.node));
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_RESPONSE)
            .max_encoding_message_size(MAX_RESPONSE);
        let outgoing = stream::poll_fn(move |cx| outgoing.poll_recv(cx));
        let responses = client.delta_aggregated_resources(outgoing).await?;
        Ok((requests, responses.into_inner()))
    }

    async fn receive(
        &mut self,
        requests: mpsc::Sender<DeltaDiscoveryRequest>,
        mut responses: Streaming<DeltaDiscoveryResponse>,
    ) -> String {
        loop {
            let never = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                message = responses.message() => match message {
                    Ok(Some(response)) => {
                        if requests.send(self.take(response)).await.is_err() {
                            return "the stream was closed".to_owned();
                        }
                    }
                    Ok(None) => return "control ended the stream".to_owned(),
                    Err(status) => return explain(&status),
                },
                () = sleep_until(self.snapshot_due.unwrap_or(never)) => self.save(),
            }
        }
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let Some(xds) = &mut self.xds else {
            return DeltaDiscoveryRequest::default();
        };
        let applied = xds.apply(response);
        counter!("nodemesh_discovery_changes_total").increment(applied.changes.len() as u64);
        counter!("nodemesh_discovery_refused_total").increment(applied.faults.len() as u64);
        for fault in &applied.faults {
            tracing::warn!(
                fault,
                "discovery: resource refused, the last good one stays"
            );
        }
        self.change(applied.changes);
        // The first state is kept at once: a supervisor may end, and control with it, before
        // it has lived for a delay.
        let now = Instant::now();
        let due = self.saved.map_or(now, |at| now.max(at + SNAPSHOT_DELAY));
        self.snapshot_due.get_or_insert(due);
        applied.request
    }

    fn save(&mut self) {
        let due = self.snapshot_due.take();
        if let (Some(_), Some(xds)) = (due, &self.xds) {
            self.saved = Some(Instant::now());
            let path = self.config.state_dir.join(SNAPSHOT_FILE);
            if let Err(e) = write_private(&path, &xds.snapshot().encode_to_vec()) {
                tracing::warn!(error = %chain(&e), "control: the state could not be kept");
            }
        }
    }
}
