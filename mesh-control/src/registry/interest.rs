//! Who takes an interest in what: a change is looked up once, and reaches the streams that it
//! concerns. It costs nothing to the others, however many they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::directory::Changed;
use super::resource::{ResourceType, Subject};
use super::topic::Topic;

/// One stream.
pub type StreamId = u64;

/// What has changed for a stream since it was last told. However much changes, it holds no more
/// than the names of what the stream has an interest in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Resources that are new, different or gone.
    pub names: BTreeSet<(ResourceType, Arc<str>)>,
    /// What the stream has an interest in may be something else now.
    pub plan: bool,
    /// When the first of these changes came.
    pub since: Option<Instant>,
}

impl Pending {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.plan
    }
}

#[derive(Debug, Default)]
struct Stream {
    topics: BTreeSet<Topic>,
    pending: Pending,
}

/// The streams by topic.
#[derive(Debug, Default)]
pub struct Interest {
    streams: HashMap<StreamId, Stream>,
    by_topic: HashMap<Topic, BTreeSet<StreamId>>,
    /// Of topics that are blocks of addresses. There are few: policies name them.
    by_block: BTreeMap<Topic, BTreeSet<StreamId>>,
    next: StreamId,
}

impl Interest {
    /// A new stream, without interests.
    pub fn join(&mut self) -> StreamId {
        self.next += 1;
        self.streams.insert(self.next, Stream::default());
        self.next
    }

    /// A stream has ended.
    pub fn leave(&mut self, id: StreamId) {
        self.set_topics(id, BTreeSet::new());
        self.streams.remove(&id);
    }

    /// What a stream has an interest in from now on.
    pub fn set_topics(&mut self, id: StreamId, topics: BTreeSet<Topic>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut stream.topics, topics);
        for gone in before.difference(&stream.topics) {
            if gone.is_block() {
                if let Some(ids) = self.by_block.get_mut(gone) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.by_block.remove(gone);
                    }
                }
            } else if let Some(ids) = self.by_topic.get_mut(gone) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_topic.remove(gone);
                }
            }
        }
        for new in stream.topics.difference(&before) {
            let ids = match new.is_block() {
                true => self.by_block.entry(new.clone()).or_default(),
                false => self.by_topic.entry(new.clone()).or_default(),
            };
            ids.insert(id);
        }
    }

    /// Notes for every stream what of these changes concerns it. Returns those that had nothing
    /// to be told before.
    pub fn note(&mut self, changes: &[Changed], now: Instant) -> Vec<StreamId> {
        let mut woken = Vec::new();
        for changed in changes {
            let sides = || [&changed.old, &changed.new].into_iter().flatten();
            let topics: BTreeSet<Topic> = sides().flat_map(|side| side.topics()).collect();
            // With a service come its workloads.
            let service = sides().any(|side| matches!(side.subject, Subject::Service(_)));
            let blocks = self
                .by_block
                .iter()
                .filter(|(block, _)| sides().any(|side| block.covers(side)));
            let found = topics
                .iter()
                .filter_map(|topic| self.by_topic.get_key_value(topic));
            for (topic, ids) in found.chain(blocks) {
                let plan = service
                    || matches!(
                        topic,
                        Topic::Node(_)
                            | Topic::Policies(_)
                            | Topic::Target(_)
                            | Topic::Block(_)
                            | Topic::Virtual(_)
                    );
                for id in ids {
                    let Some(stream) = self.streams.get_mut(id) else {
                        continue;
                    };
                    let pending = &mut stream.pending;
                    if pending.is_empty() {
                        pending.since = Some(now);
                        woken.push(*id);
                    }
                    pending.plan |= plan;
                    pending.names.insert((changed.kind, changed.name.clone()));
                }
            }
        }
        woken
    }

    /// What a stream is to be told, which is told then.
    pub fn take(&mut self, id: StreamId) -> Pending {
        let stream = self.streams.get_mut(&id);
        stream.map_or_else(Pending::default, |stream| {
            std::mem::take(&mut stream.pending)
        })
    }
}
