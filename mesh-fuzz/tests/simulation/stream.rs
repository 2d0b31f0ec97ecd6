//! One discovery stream: control's real subscriber, and the two directions of the connection. What
//! waits where is as in `mesh_control::xds`.

use std::collections::VecDeque;

use fastrand::Rng;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_control::xds::subscriber::Subscriber;

use crate::bugs::Bug;
use crate::replica::Replica;

/// Responses that wait for a node that does not read.
const QUEUE_LEN: usize = 2;

/// A stream, seen from control; it ends with the node's or the replica's end of it.
pub(crate) struct Stream {
    /// Which replica serves it.
    pub(crate) replica: usize,
    /// Place in the history of the state that it began with, and of the one that it was told.
    pub(crate) began_at: usize,
    told_at: usize,
    subscriber: Subscriber,
    /// What the task is sending.
    made: VecDeque<DeltaDiscoveryResponse>,
    /// What waits for the connection.
    queue: VecDeque<DeltaDiscoveryResponse>,
    /// On the way to the node, and from it.
    pub(crate) responses: VecDeque<DeltaDiscoveryResponse>,
    pub(crate) requests: VecDeque<DeltaDiscoveryRequest>,
    /// Whether the node has taken any change of it.
    pub(crate) took: bool,
}

impl Stream {
    pub(crate) fn open(
        replica: usize,
        served: &Replica,
        node: &str,
        requests: Vec<DeltaDiscoveryRequest>,
    ) -> Self {
        Self {
            replica,
            began_at: served.at,
            told_at: served.at,
            subscriber: served.subscriber(node),
            made: VecDeque::new(),
            queue: VecDeque::new(),
            responses: VecDeque::new(),
            requests: requests.into(),
            took: false,
        }
    }

    /// Control's task does one thing, if there is one to do.
    pub(crate) fn serve(&mut self, replica: &Replica, rng: &mut Rng, bug: Option<Bug>) -> bool {
        let news = self.told_at != replica.at;
        if let Some(response) = self.made.pop_front() {
            if self.queue.len() < QUEUE_LEN {
                self.queue.push_back(response);
                return true;
            }
            self.made.push_front(response);
            match bug {
                Some(Bug::LostWhileBusy) if news => drop(self.changed(replica)),
                Some(Bug::Overtaken) if news => {
                    for response in self.changed(replica).into_iter().rev() {
                        self.made.push_front(response);
                    }
                }
                _ => {}
            }
            return false;
        }
        let asked = !self.requests.is_empty();
        if asked && (!news || rng.bool()) {
            self.answer(replica, bug);
        } else if news {
            self.made = self.changed(replica).into();
        } else if rng.u8(..8) == 0 {
            self.made = self.subscriber.version().responses.into();
        }
        asked || news
    }

    /// Whether neither a response nor a question is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        let mut responses = [&self.made, &self.queue, &self.responses].into_iter();
        let mut requests = self.requests.iter();
        responses.all(VecDeque::is_empty) && requests.all(|r| r.resource_names_subscribe.is_empty())
    }

    fn changed(&mut self, replica: &Replica) -> Vec<DeltaDiscoveryResponse> {
        self.told_at = replica.at;
        self.subscriber.changed().responses
    }

    fn answer(&mut self, replica: &Replica, bug: Option<Bug>) {
        let Some(mut request) = self.requests.pop_front() else {
            return;
        };
        let resumes = !request.initial_resource_versions.is_empty();
        if bug == Some(Bug::ResumesByName) {
            replica.claim_present(&mut request);
        }
        let news = self.subscriber.request(&request);
        let mut answer = news.expect("a request that an agent makes").responses;
        self.told_at = replica.at;
        if resumes && bug == Some(Bug::ForgetsRemovals) {
            for response in &mut answer {
                response.removed_resources.clear();
            }
        }
        // A change comes before the answer to the request that found it.
        let change = answer.iter().position(|r| !r.more);
        if let (Some(last), Some(Bug::AnswersAhead)) = (change, bug) {
            answer.rotate_left(last + 1);
        }
        self.made = answer.into();
    }

    /// The connection carries one response on, perhaps in two pieces: a larger mesh comes in many.
    pub(crate) fn carry(&mut self, rng: &mut Rng) -> bool {
        let Some(response) = self.queue.pop_front() else {
            return false;
        };
        if response.resources.len() < 2 || rng.u8(..4) > 0 {
            self.responses.push_back(response);
            return true;
        }
        let mut rest = response;
        let first = rest.resources.drain(..rest.resources.len() / 2).collect();
        self.responses.push_back(DeltaDiscoveryResponse {
            resources: first,
            removed_resources: Vec::new(),
            nonce: format!("{}-0", rest.nonce),
            more: true,
            ..rest.clone()
        });
        self.responses.push_back(rest);
        true
    }
}
