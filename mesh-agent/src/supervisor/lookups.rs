//! What a worker has asked for, destinations and sources: answered once each, pushed again
//! when the answer changes, bounded in number.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::convert::address_from_bytes;
use mesh_api::worker::change::Change;
use mesh_api::worker::{Destination, ResolveDestination, ResolveSource, SourceInfo};

use super::asked::{Asked, Asking};
use super::discovery::View;

/// Questions of one kind whose answer leads somewhere, per worker.
const MAX_POSITIVE: usize = 16_384;
/// Those that lead nowhere: a port scan shall not crowd out the rest.
const MAX_NEGATIVE: usize = 1_024;

/// An answer to a worker.
trait Answer: Clone + PartialEq {
    /// Whether it leads nowhere.
    fn is_negative(&self) -> bool;
}

impl Answer for Destination {
    fn is_negative(&self) -> bool {
        self.ttl_ms > 0
    }
}

impl Answer for SourceInfo {
    fn is_negative(&self) -> bool {
        !self.known
    }
}

/// A question with the answer given; `None` while control has not said what it is.
#[derive(Debug)]
struct Entry<A> {
    answer: Option<A>,
    _asking: Asking,
}

impl<A: Answer> Entry<A> {
    fn is_negative(&self) -> bool {
        self.answer.as_ref().is_none_or(A::is_negative)
    }
}

/// Questions of one kind.
#[derive(Debug)]
struct Questions<K, A> {
    entries: HashMap<K, Entry<A>>,
    negative: usize,
    /// Those that led nowhere when they were asked, the oldest first.
    oldest: VecDeque<K>,
}

impl<K, A> Default for Questions<K, A> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            negative: 0,
            oldest: VecDeque::new(),
        }
    }
}

impl<K: Copy + Eq + Hash, A: Answer> Questions<K, A> {
    fn keep(&mut self, key: K, answer: Option<A>, asking: Asking) {
        self.remove(key);
        let entry = Entry {
            answer,
            _asking: asking,
        };
        let is_negative = entry.is_negative();
        let full = match is_negative {
            true => self.negative >= MAX_NEGATIVE && !self.make_room(),
            false => self.entries.len() - self.negative >= MAX_POSITIVE,
        };
        if full {
            return;
        }
        self.entries.insert(key, entry);
        if is_negative {
            self.negative += 1;
            self.line_up(key);
        }
    }

    fn line_up(&mut self, key: K) {
        self.oldest.push_back(key);
        if self.oldest.len() > 2 * MAX_NEGATIVE {
            // Asked again and again, most of them.
            let mut seen = HashSet::new();
            let entries = &self.entries;
            self.oldest.retain(|key| {
                entries.get(key).is_some_and(Entry::is_negative) && seen.insert(*key)
            });
        }
    }

    fn remove(&mut self, key: K) {
        if let Some(old) = self.entries.remove(&key) {
            self.negative -= usize::from(old.is_negative());
        }
    }

    /// Drops the oldest answer that leads nowhere: the worker asks again when its time is up.
    /// What control has not answered yet stays.
    fn make_room(&mut self) -> bool {
        for _ in 0..self.oldest.len() {
            let Some(key) = self.oldest.pop_front() else {
                return false;
            };
            match self.entries.get(&key) {
                Some(entry) if entry.answer.is_none() => self.oldest.push_back(key),
                Some(entry) if entry.is_negative() => {
                    self.remove(key);
                    return true;
                }
                // It leads somewhere by now, or is gone.
                _ => {}
            }
        }
        false
    }

    /// The answers that are others now.
    fn refresh(&mut self, answer: impl Fn(K) -> Option<A>) -> Vec<A> {
        let mut news = Vec::new();
        let mut turned = Vec::new();
        for (key, entry) in &mut self.entries {
            // An answer stays until there is another.
            let Some(new) = answer(*key).filter(|new| entry.answer.as_ref() != Some(new)) else {
                continue;
            };
            let before = entry.is_negative();
            entry.answer = Some(new.clone());
            match (before, entry.is_negative()) {
                (true, false) => self.negative -= 1,
                (false, true) => {
                    self.negative += 1;
                    turned.push(*key);
                }
                _ => {}
            }
            news.push(new);
        }
        turned.into_iter().for_each(|key| self.line_up(key));
        news
    }
}

/// One worker's look-ups.
#[derive(Debug)]
pub(super) struct Lookups {
    asked: Arc<Asked>,
    destinations: Questions<(IpAddr, u16), Destination>,
    sources: Questions<IpAddr, SourceInfo>,
}

impl Lookups {
    pub(super) fn new(asked: Arc<Asked>) -> Self {
        Self {
            asked,
            destinations: Questions::default(),
            sources: Questions::default(),
        }
    }

    /// Answers where a destination leads, or keeps the question until control has said it.
    pub(super) fn destination(
        &mut self,
        view: Option<&View>,
        question: &ResolveDestination,
    ) -> Result<Option<Change>, String> {
        let address = address(&question.address)?;
        let port = u16::try_from(question.port).map_err(|_| "port beyond 65535".to_owned())?;
        let Some(asking) = self.asked.ask(address) else {
            return Ok(None);
        };
        let answer = view.and_then(|view| view.destination(address, port));
        self.destinations
            .keep((address, port), answer.clone(), asking);
        Ok(answer.map(Change::Destination))
    }

    /// Answers who a source is, or keeps the question until control has said it.
    pub(super) fn source(
        &mut self,
        view: Option<&View>,
        question: &ResolveSource,
    ) -> Result<Option<Change>, String> {
        let address = address(&question.address)?;
        let Some(asking) = self.asked.ask(address) else {
            return Ok(None);
        };
        let answer = view.and_then(|view| view.source(address));
        self.sources.keep(address, answer.clone(), asking);
        Ok(answer.map(Change::Source))
    }

    /// Discovery has changed: the answers that are others now.
    pub(super) fn refresh(&mut self, view: &View) -> Vec<Change> {
        let destination = |(address, port)| view.destination(address, port);
        let destinations = self.destinations.refresh(destination).into_iter();
        let sources = self.sources.refresh(|address| view.source(address));
        let sources = sources.into_iter().map(Change::Source);
        destinations
            .map(Change::Destination)
            .chain(sources)
            .collect()
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    address_from_bytes(bytes, "address").map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::discovery::{Discovery, Touched};
    use mesh_core::identity::Identity;
    use mesh_core::model::{Enrolment, Workload};

    fn question(last: u8, port: u32) -> ResolveDestination {
        ResolveDestination {
            address: vec![10, 0, 0, last],
            port,
        }
    }

    fn ask(
        lookups: &mut Lookups,
        discovery: &Discovery,
        question: &ResolveDestination,
    ) -> Option<Destination> {
        match lookups.destination(discovery.known().as_deref(), question) {
            Ok(Some(Change::Destination(destination))) => Some(destination),
            Ok(None) => None,
            other => panic!("{other:?}"),
        }
    }

    fn put(discovery: &Discovery, last: u8, account: &str) {
        let identity = Identity::new("cluster.local".parse().unwrap(), "shop", account).unwrap();
        discovery.update("1", |view| {
            view.mesh.insert_workload(Workload {
                addresses: vec![[10, 0, 0, last].into()],
                enrolment: Enrolment::Enforce,
                ..Workload::new(format!("u{last}"), "cart", identity)
            });
            Touched::default()
        });
    }

    /// Control has said that nobody else is at these addresses.
    fn answered(discovery: &Discovery, addresses: &[u8]) {
        discovery.update("1", |view| {
            let addresses = addresses.iter().map(|last| IpAddr::from([10, 0, 0, *last]));
            view.answered.extend(addresses);
            Touched::default()
        });
    }

    fn start() -> (Discovery, Lookups) {
        let discovery = Discovery::new("a", &[]);
        let lookups = Lookups::new(discovery.asked().clone());
        (discovery, lookups)
    }

    #[test]
    fn what_was_asked_is_pushed_when_it_changes_and_only_then() {
        let (discovery, mut lookups) = start();
        // Nothing is answered before discovery is known.
        assert_eq!(ask(&mut lookups, &discovery, &question(2, 80)), None);
        assert_eq!(discovery.asked().take_new(), [IpAddr::from([10, 0, 0, 2])]);
        let known = |pushed: &[Change]| match pushed {
            [Change::Destination(destination)] => destination.known,
            other => panic!("{other:?}"),
        };
        // Nor before control has said who is there, or that nobody is.
        put(&discovery, 9, "cart");
        assert!(lookups.refresh(&discovery.view()).is_empty());
        answered(&discovery, &[2]);
        assert!(!known(&lookups.refresh(&discovery.view())));
        put(&discovery, 2, "cart");
        assert!(known(&lookups.refresh(&discovery.view())));
        put(&discovery, 3, "cart");
        assert!(lookups.refresh(&discovery.view()).is_empty());
        assert_eq!(lookups.destinations.negative, 0);
        let wrong = lookups.destination(discovery.known().as_deref(), &question(2, 70_000));
        assert!(wrong.is_err());
    }

    #[test]
    fn who_a_source_is_is_pushed_when_it_changes_and_only_then() {
        let (discovery, mut lookups) = start();
        let who = ResolveSource {
            address: vec![10, 0, 0, 2],
        };
        assert_eq!(lookups.source(discovery.known().as_deref(), &who), Ok(None));
        for (account, news) in [("cart", true), ("cart", false), ("pay", true)] {
            put(&discovery, 2, account);
            let pushed = lookups.refresh(&discovery.view());
            match pushed.as_slice() {
                [Change::Source(source)] => {
                    assert!(news && source.known && source.identity.ends_with(account));
                }
                other => assert!(!news && other.is_empty(), "{other:?}"),
            }
        }
    }

    #[test]
    fn a_scan_is_bounded_and_crowds_nothing_out() {
        let (discovery, mut lookups) = start();
        put(&discovery, 2, "cart");
        answered(&discovery, &[7]);
        for port in 0..3_000 {
            let answer = ask(&mut lookups, &discovery, &question(7, port)).unwrap();
            assert!(!answer.known && answer.ttl_ms > 0);
        }
        let kept = |lookups: &Lookups| lookups.destinations.entries.len();
        assert_eq!(lookups.destinations.negative, MAX_NEGATIVE);
        assert_eq!(kept(&lookups), MAX_NEGATIVE);
        assert!(
            ask(&mut lookups, &discovery, &question(2, 80))
                .unwrap()
                .known
        );
        assert_eq!(kept(&lookups), MAX_NEGATIVE + 1);
        assert!(lookups.destinations.oldest.len() <= 2 * MAX_NEGATIVE);
    }

    #[test]
    fn what_control_has_not_answered_is_kept_however_much_else_is_asked() {
        let (discovery, mut lookups) = start();
        answered(&discovery, &[7]);
        assert_eq!(ask(&mut lookups, &discovery, &question(2, 80)), None);
        for port in 0..3_000 {
            assert!(ask(&mut lookups, &discovery, &question(7, port)).is_some());
        }
        put(&discovery, 2, "cart");
        assert_eq!(lookups.refresh(&discovery.view()).len(), 1);
        for _ in 0..3_000 {
            assert!(ask(&mut lookups, &discovery, &question(7, 1)).is_some());
        }
        assert!(lookups.destinations.oldest.len() <= 2 * MAX_NEGATIVE);
        // With the worker its questions end.
        drop(lookups);
        let unused = discovery.forget_unused(tokio::time::Instant::now());
        assert_eq!(unused.len(), 2);
        assert!(discovery.view().answered.is_empty());
    }
}
