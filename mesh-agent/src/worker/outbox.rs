//! What goes to the supervisor: one bounded queue, one task that sends.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use mesh_api::worker::{ToSupervisor, to_supervisor::Message};
use tokio::sync::mpsc;

use crate::channel::WorkerChannel;

/// Messages that wait while the supervisor is away; it asks for what matters by `Resync`.
const QUEUE: usize = 2048;

type Packet = (ToSupervisor, Vec<OwnedFd>);

/// The way to the supervisor.
#[derive(Clone)]
pub(crate) struct Outbox(mpsc::Sender<Packet>);

impl Outbox {
    /// The queue and its other end, for [`deliver`].
    pub(crate) fn new() -> (Self, mpsc::Receiver<Packet>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Queues a message that may be lost: false when the queue is full.
    pub(crate) fn try_send(&self, message: Message) -> bool {
        self.0.try_send((wrap(message), Vec::new())).is_ok()
    }

    /// Waits until nothing is queued. What is being sent at that moment may not have gone.
    pub(crate) async fn delivered(&self) {
        // All places are free again when everything was taken out.
        let _all = self.0.reserve_many(QUEUE).await;
    }

    /// Queues a message, waiting for room.
    pub(crate) async fn send(&self, message: Message, fds: Vec<OwnedFd>) {
        if self.0.send((wrap(message), fds)).await.is_err() {
            tracing::warn!("the channel to the supervisor is closed; a message was not sent");
        }
    }
}

fn wrap(message: Message) -> ToSupervisor {
    ToSupervisor {
        message: Some(message),
    }
}

/// Sends what is queued, in order, until every [`Outbox`] is gone or the channel is broken.
pub(crate) async fn deliver(channel: Rc<WorkerChannel>, mut queue: mpsc::Receiver<Packet>) {
    while let Some((message, fds)) = queue.recv().await {
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(error) = channel.send(&message, &borrowed).await {
            tracing::warn!(%error, "sending to the supervisor failed");
            if error.kind() != std::io::ErrorKind::InvalidInput {
                return;
            }
        }
    }
}
