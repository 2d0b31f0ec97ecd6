//! Tells nodes what is trusted and what is revoked, now and after each change.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::trust::trust_service_server::TrustService;
use mesh_api::trust::{FollowRequest, Trust};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::caller::{Gate, NodeCaller};
use crate::trust::Served;

/// How long a node may take to hear why its stream ends.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The trust service.
pub(super) struct Trusted {
    /// Who may ask.
    pub(super) gate: Arc<Gate>,
    /// What is served.
    pub(super) trust: watch::Receiver<Arc<Served>>,
    /// Turns true when the server is to end.
    pub(super) stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl TrustService for Trusted {
    type FollowStream = ReceiverStream<Result<Trust, Status>>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let caller = self.gate.node(&request).await?;
        // What changes while the node does not read is not queued: it is told the latest.
        let (answers, receiver) = mpsc::channel(1);
        let (gate, trust) = (self.gate.clone(), self.trust.clone());
        let mut stopping = self.stopping.clone();
        tokio::spawn(async move {
            let end = tokio::select! {
                () = tell(trust, &answers) => None,
                status = gate.dismissed(&caller) => Some(status),
                _ = stopping.wait_for(|stop| *stop) => {
                    Some(Status::unavailable("the control component is stopping; connect again"))
                }
                status = expired(&caller) => Some(status),
            };
            if let Some(status) = end {
                // A node that does not read gets no last word: its stream just ends.
                let _ = timeout(LAST_WORD, answers.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Until the node has gone.
async fn tell(
    mut trust: watch::Receiver<Arc<Served>>,
    answers: &mpsc::Sender<Result<Trust, Status>>,
) {
    loop {
        let now = trust.borrow_and_update().message.clone();
        if answers.send(Ok(now)).await.is_err() {
            return;
        }
        tokio::select! {
            Ok(()) = trust.changed() => {}
            () = answers.closed() => return,
        }
    }
}

async fn expired(caller: &NodeCaller) -> Status {
    let left_s = caller.not_after_s - crate::now_s();
    tokio::time::sleep(Duration::from_secs(u64::try_from(left_s).unwrap_or(0))).await;
    Status::unauthenticated(
        "the certificate this stream was opened with has expired; connect again with the renewed one",
    )
}
