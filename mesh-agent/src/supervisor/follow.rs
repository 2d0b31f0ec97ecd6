//! The one discovery stream, and the last good state on disk. While control is away that
//! state stays.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use mesh_api::ads::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_core::identity::TrustDomain;
use metrics::{counter, gauge};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, sleep_until};
use tonic::Streaming;
use tonic::transport::Channel;

use super::asked::LINGER;
use super::backoff::{Backoff, random};
use super::config::Config;
use super::control::{Control, FIRST_RETRY, LONGEST_RETRY};
use super::discovery::{Discovery, Touched};
use super::join::{self, chain, explain, write_private};
use super::xds::{Commit, XdsState};

/// A stream that lived this long was a good one: the next attempt starts afresh.
const GOOD_STREAM: Duration = Duration::from_secs(10);
/// How long changes are gathered before the snapshot is written.
const SNAPSHOT_DELAY: Duration = Duration::from_millis(500);
/// Largest discovery response, in bytes.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
const SNAPSHOT_FILE: &str = "discovery.pb";
/// How often addresses that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(15);

/// Follows discovery, for ever.
pub(super) async fn follow(control: Arc<Control>, config: Arc<Config>, discovery: Arc<Discovery>) {
    let mut renewals = control.renewals();
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut follower = Follower {
        control: &control,
        config: &config,
        discovery: &discovery,
        xds: None,
        snapshot_due: None,
        saved: None,
    };
    follower.restore();
    loop {
        let replica = control.replica().await;
        renewals.mark_unchanged();
        let started = Instant::now();
        let outcome = tokio::select! {
            outcome = follower.stream(replica.channel) => outcome,
            // A renewed certificate, or another replica: go on with that one, at once.
            _ = renewals.changed() => continue,
        };
        control.set_connected(false);
        if started.elapsed() >= GOOD_STREAM {
            backoff.reset();
        }
        let wait = backoff.next(random());
        control.trouble("no discovery", &outcome, wait);
        control.leave(replica.address);
        follower.save();
        sleep(wait).await;
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

type Opened = (
    mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
);

impl Follower<'_> {
    fn trust_domain(&self) -> Result<TrustDomain, String> {
        join::last_trust_domain(&self.config.state_dir)
    }

    fn snapshot_file(&self) -> PathBuf {
        self.config.state_dir.join(SNAPSHOT_FILE)
    }

    /// Takes up the last good state of an earlier run, so that a node that starts while
    /// control is away serves its pods all the same.
    fn restore(&mut self) {
        let path = self.snapshot_file();
        let (Ok(bytes), Ok(trust_domain)) = (std::fs::read(&path), self.trust_domain()) else {
            return;
        };
        let restored = DeltaDiscoveryResponse::decode(bytes.as_slice())
            .map_err(|e| e.to_string())
            .and_then(|snapshot| XdsState::restore(trust_domain, snapshot));
        match restored {
            Ok((xds, commit, faults)) => {
                let (version, changes) = (commit.version.clone(), commit.changes.len());
                tracing::info!(
                    version,
                    changes,
                    "control: going on from the last good state"
                );
                self.xds = Some(xds);
                let asked = self.discovery.asked();
                asked.restore(commit.answered.iter().copied(), Instant::now());
                self.report_faults(&faults);
                self.change(commit);
            }
            Err(why) => {
                tracing::warn!(error = why, path = %path.display(), "control: snapshot unusable, left out");
            }
        }
    }

    /// Brings a commit into effect.
    fn change(&mut self, commit: Commit) {
        let Commit {
            version,
            changes,
            answered,
        } = commit;
        self.discovery.update(&version, |view| {
            view.answered.extend(answered);
            let mut touched = Touched::default();
            for change in changes {
                let by_it = change.apply(&mut view.mesh);
                touched.policies |= by_it.policies;
                touched.places |= by_it.places;
            }
            touched
        });
        let view = self.discovery.view();
        let unreadable = self.xds.as_ref().map(XdsState::unreadable);
        let unreadable = unreadable.unwrap_or_default();
        gauge!("nodemesh_policies_unreadable").set(unreadable.len() as f64);
        self.control.tell(|report| {
            report.synced = true;
            report.workloads = view.mesh.workloads().count();
            report.services = view.mesh.services().count();
            report.policies =
                view.mesh.authorizations().count() + view.mesh.authentications().count();
            report.discovery_version = version;
            report.unreadable_policies = unreadable;
        });
    }

    fn report_faults(&self, faults: &[String]) {
        counter!("nodemesh_discovery_refused_total").increment(faults.len() as u64);
        for fault in faults {
            tracing::error!(
                fault,
                "discovery: resource refused; the last good one stays, and a policy without one is taken as strictly as it could be meant (is this agent older than control?)"
            );
        }
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

    async fn open(&mut self, channel: Channel) -> Result<Opened, tonic::Status> {
        // There are as many requests as control sends responses and workers ask questions. To wait
        // for control to read them, while it waits for its responses to be read, could last.
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let new = self.discovery.asked().take_new();
        let first = self.xds.as_mut().map(|xds| {
            xds.ask(&new, &[]);
            xds.subscribe(&self.config.node)
        });
        for request in first.into_iter().flatten() {
            // Its other end is in this function.
            let _ = requests.send(request);
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
        requests: mpsc::UnboundedSender<DeltaDiscoveryRequest>,
        mut responses: Streaming<DeltaDiscoveryResponse>,
    ) -> String {
        let discovery = self.discovery;
        let mut sweep = interval(SWEEP);
        // What was used before is given its time on this stream, too.
        let begun = Instant::now();
        loop {
            let never = Instant::now() + Duration::from_secs(3600);
            let request = tokio::select! {
                message = responses.message() => match message {
                    Ok(Some(response)) => Some(self.take(response)),
                    Ok(None) => return "control ended the stream".to_owned(),
                    Err(status) => return explain(&status),
                },
                () = discovery.asked().news() => self.ask(&[]),
                now = sweep.tick() => match now.checked_sub(LINGER) {
                    Some(before) if begun <= before => self.ask(&discovery.forget_unused(before)),
                    _ => None,
                },
                () = sleep_until(self.snapshot_due.unwrap_or(never)) => {
                    self.save();
                    None
                }
            };
            if let Some(request) = request
                && requests.send(request).is_err()
            {
                return "the stream was closed".to_owned();
            }
        }
    }

    /// Asks control about addresses that are new, and no more about `unused`.
    fn ask(&mut self, unused: &[IpAddr]) -> Option<DeltaDiscoveryRequest> {
        let new = self.discovery.asked().take_new();
        self.xds.as_mut()?.ask(&new, unused)
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let Some(xds) = &mut self.xds else {
            return DeltaDiscoveryRequest::default();
        };
        let applied = xds.apply(response);
        self.report_faults(&applied.faults);
        if let Some(commit) = applied.commit {
            counter!("nodemesh_discovery_changes_total").increment(commit.changes.len() as u64);
            self.change(commit);
            // The first state is kept at once: a supervisor may end, and control with it,
            // before it has lived for a delay.
            let now = Instant::now();
            let due = self.saved.map_or(now, |at| now.max(at + SNAPSHOT_DELAY));
            self.snapshot_due.get_or_insert(due);
        }
        applied.request
    }

    fn save(&mut self) {
        let due = self.snapshot_due.take();
        if let (Some(_), Some(xds)) = (due, &self.xds) {
            self.saved = Some(Instant::now());
            if let Err(e) = write_private(&self.snapshot_file(), &xds.snapshot().encode_to_vec()) {
                tracing::warn!(error = %chain(&e), "control: the state could not be kept");
            }
        }
    }
}
