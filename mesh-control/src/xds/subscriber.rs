//! A stream's place in the registry: what has changed for it is gathered there, and told from
//! the state at the time.

use std::sync::Arc;
use std::time::Instant;

use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::Notify;

use super::session::{Session, SessionFault};
use crate::registry::{Directory, Registry, StreamId};

/// What is to be sent.
#[derive(Debug, Default)]
pub struct News {
    /// Responses, in order.
    pub responses: Vec<DeltaDiscoveryResponse>,
    /// Of the change that it begins with, the nonce of its last response, and when it came from
    /// the source.
    pub change: Option<(String, Instant)>,
}

/// One stream's session, in the registry as long as it lives.
pub struct Subscriber {
    registry: Arc<Registry>,
    id: StreamId,
    news: Arc<Notify>,
    session: Session,
    /// Version of the whole that the client was told last.
    told: Arc<str>,
}

impl Subscriber {
    /// A stream of this node.
    #[must_use]
    pub fn new(registry: Arc<Registry>, node: &str) -> Self {
        let news = Arc::new(Notify::new());
        Self {
            id: registry.join(news.clone()),
            registry,
            news,
            session: Session::new(node),
            told: Arc::default(),
        }
    }

    /// Until there is something to tell.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What has changed.
    pub fn changed(&mut self) -> News {
        self.tell(|_, _| Ok(Vec::new())).unwrap_or_default()
    }

    /// Takes a request. What has changed meanwhile comes before the answer, as a change of its
    /// own: no part of it is let out by the answer.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Result<News, SessionFault> {
        self.tell(|session, directory| session.request(request, directory))
    }

    /// The version of the whole, if it is another than the one told last.
    pub fn version(&mut self) -> News {
        let told = self.told.clone();
        let version =
            |session: &mut Session, directory: &Directory| match directory.version() == told {
                true => Ok(Vec::new()),
                false => Ok(session.version(directory)),
            };
        self.tell(version).unwrap_or_default()
    }

    fn tell(
        &mut self,
        answer: impl FnOnce(
            &mut Session,
            &Directory,
        ) -> Result<Vec<DeltaDiscoveryResponse>, SessionFault>,
    ) -> Result<News, SessionFault> {
        let Self {
            registry,
            id,
            session,
            told,
            ..
        } = self;
        registry.tell(*id, |directory, pending| {
            let mut responses = match pending.is_empty() {
                true => Vec::new(),
                false => session.changed(pending, directory),
            };
            let nonce = responses.last().map(|response| response.nonce.clone());
            let change = nonce.zip(pending.since);
            let answered = answer(session, directory).map(|answer| {
                responses.extend(answer);
                News { responses, change }
            });
            if answered
                .as_ref()
                .is_ok_and(|news| !news.responses.is_empty())
            {
                *told = directory.version();
            }
            (answered, session.new_topics())
        })
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.registry.leave(self.id);
    }
}
