//! Delta aggregated discovery: what to send is decided in [`session`], this is the stream.

mod lag;
mod plan;
pub mod session;
pub mod subscriber;
mod subscription;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::ads::aggregated_discovery_service_server::AggregatedDiscoveryService;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::audit::{Audit, Event};
use crate::registry::Registry;
use crate::server::caller::{Gate, NodeCaller};
use lag::Lag;
use session::SessionFault;
use subscriber::{News, Subscriber};

/// Responses that wait for a node that does not read. What changes meanwhile is not queued:
/// the next response is made from the state of the mesh at that time.
const QUEUE_LEN: usize = 2;
/// How long after anything else a node is told which version it has.
const VERSION_INTERVAL: Duration = Duration::from_secs(1);

/// The discovery service.
pub struct Discovery {
    /// Who may call.
    pub gate: Arc<Gate>,
    /// What is served.
    pub registry: Arc<Registry>,
    /// Where refusals go.
    pub audit: Arc<Audit>,
    /// Turns true when the server is to end.
    pub stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = self.gate.node(&request).await?;
        let (responses, receiver) = mpsc::channel(QUEUE_LEN);
        let node = caller.identity.node();
        let stream = Stream {
            subscriber: Subscriber::new(self.registry.clone(), node),
            gate: self.gate.clone(),
            caller,
            lag: Lag::default(),
            audit: self.audit.clone(),
            responses,
        };
        let stopping = self.stopping.clone();
        tokio::spawn(async move { stream.run(request.into_inner(), stopping).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Stream {
    gate: Arc<Gate>,
    caller: NodeCaller,
    subscriber: Subscriber,
    lag: Lag,
    audit: Arc<Audit>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Stream {
    async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let node = self.caller.identity.node().to_owned();
        tracing::info!(node, "discovery stream opened");
        let responses = self.responses.clone();
        let (gate, caller) = (self.gate.clone(), self.caller.clone());
        let left_s = self.caller.not_after_s - crate::now_s();
        let expiry = Duration::from_secs(u64::try_from(left_s).unwrap_or(0));
        let end = tokio::select! {
            end = self.serve(&mut requests) => end,
            _ = stopping.wait_for(|stop| *stop) => {
                Some(Status::unavailable("the control component is stopping; connect again"))
            }
            () = tokio::time::sleep(expiry) => Some(Status::unauthenticated(
                "the certificate this stream was opened with has expired; connect again with the renewed one",
            )),
            status = gate.dismissed(&caller) => Some(status),
            () = responses.closed() => None,
        };
        if let Some(status) = &end {
            // A node that does not read gets no last word: its stream just ends.
            let _ = responses.try_send(Err(status.clone()));
        }
        tracing::info!(
            node,
            why = end.map_or_else(
                || "closed by the node".to_owned(),
                |s| s.message().to_owned()
            ),
            "discovery stream ended"
        );
    }

    async fn serve(&mut self, requests: &mut Streaming<DeltaDiscoveryRequest>) -> Option<Status> {
        let mut versions = tokio::time::interval(VERSION_INTERVAL);
        versions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let news = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => match self.take(&request) {
                        Ok(news) => news,
                        Err(status) => return Some(status),
                    },
                    Ok(None) => return None,
                    Err(status) => {
                        let node = self.caller.identity.node();
                        tracing::debug!(node, %status, "discovery stream broke");
                        return None;
                    }
                },
                () = self.subscriber.news() => self.subscriber.changed(),
                _ = versions.tick() => self.subscriber.version(),
            };
            if !news.responses.is_empty() {
                // Each response tells the version.
                versions.reset();
            }
            if let Some((nonce, since)) = news.change {
                self.lag.sent(&nonce, since);
            }
            for response in news.responses {
                if self.responses.send(Ok(response)).await.is_err() {
                    return None;
                }
            }
        }
    }

    fn take(&mut self, request: &DeltaDiscoveryRequest) -> Result<News, Status> {
        self.lag
            .acknowledged(&request.response_nonce, Instant::now());
        if let Some(error) = &request.error_detail {
            self.audit.record(
                Event::DiscoveryRefused,
                self.caller.identity.node(),
                format_args!("response {}", request.response_nonce),
                &error.message,
            );
        }
        self.subscriber
            .request(request)
            .map_err(|fault| match fault {
                SessionFault::TypeUrl(_) => Status::invalid_argument(fault.to_string()),
                SessionFault::TooManyNames => Status::resource_exhausted(fault.to_string()),
            })
    }
}
