//! What a worker has asked for, destinations and sources: answered once each, pushed again
//! when the answer changes, bounded in number.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use mesh_api::convert::address_from_bytes;
use mesh_api::worker::change::Change;
use mesh_api::worker::{Destination, ResolveDestination, ResolveSource, SourceInfo};

use super::discovery::View;

/// Questions of one kind whose answer leads somewhere, per worker.
const MAX_POSITIVE: usize = 16_384;
/// Those that lead nowhere: a port scan shall not crowd out the rest. A worker asks again for
/// those that aren't kept, when their time is up.
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

/// Questions of one kind, with the answers given; `None` while discovery is unknown.
#[derive(Debug)]
struct Asked<K, A> {
    answers: HashMap<K, Option<A>>,
    negative: usize,
}

impl<K, A> Default for Asked<K, A> {
    fn default() -> Self {
        Self {
            answers: HashMap::new(),
            negative: 0,
        }
    }
}

impl<K: Copy + Eq + Hash, A: Answer> Asked<K, A> {
    fn keep(&mut self, key: K, answer: Option<A>) {
        let negative = |answer: &Option<A>| answer.as_ref().is_none_or(A::is_negative);
        if let Some(old) = self.answers.remove(&key) {
            self.negative -= usize::from(negative(&old));
        }
        let positive = self.answers.len() - self.negative;
        let is_negative = negative(&answer);
        let full = match is_negative {
            true => self.negative >= MAX_NEGATIVE,
            false => positive >= MAX_POSITIVE,
        };
        if !full {
            self.negative += usize::from(is_negative);
            self.answers.insert(key, answer);
        }
    }

    /// The answers that are others now.
    fn refresh(&mut self, answer: impl Fn(K) -> A) -> Vec<A> {
        let news = |(key, old): (&K, &Option<A>)| {
            let new = answer(*key);
            (old.as_ref() != Some(&new)).then_some((*key, new))
        };
        let changed: Vec<(K, A)> = self.answers.iter().filter_map(news).collect();
        for (key, new) in &changed {
            self.keep(*key, Some(new.clone()));
        }
        changed.into_iter().map(|(_, new)| new).collect()
    }
}

/// One worker's look-ups.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    destinations: Asked<(IpAddr, u16), Destination>,
    sources: Asked<IpAddr, SourceInfo>,
}

impl Lookups {
    /// Answers where a destination leads, or keeps the question until discovery is known.
    pub(super) fn destination(
        &mut self,
        view: Option<&View>,
        question: &ResolveDestination,
    ) -> Result<Option<Change>, String> {
        let address = address(&question.address)?;
        let port = u16::try_from(question.port).map_err(|_| "port beyond 65535".to_owned())?;
        let answer = view.map(|view| view.destination(address, port));
        self.destinations.keep((address, port), answer.clone());
        Ok(answer.map(Change::Destination))
    }

    /// Answers who a source is, or keeps the question until discovery is known.
    pub(super) fn source(
        &mut self,
        view: Option<&View>,
        question: &ResolveSource,
    ) -> Result<Option<Change>, String> {
        let address = address(&question.address)?;
        let answer = view.map(|view| view.source(address));
        self.sources.keep(address, answer.clone());
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
        discovery.update("1", |mesh| {
            mesh.insert_workload(Workload {
                addresses: vec![[10, 0, 0, last].into()],
                enrolment: Enrolment::Enforce,
                ..Workload::new(format!("u{last}"), "cart", identity)
            });
            Touched::default()
        });
    }

    #[test]
    fn what_was_asked_is_pushed_when_it_changes_and_only_then() {
        let (discovery, mut lookups) = (Discovery::new("a", &[]), Lookups::default());
        // Nothing is answered before discovery is known.
        assert_eq!(ask(&mut lookups, &discovery, &question(2, 80)), None);
        let known = |pushed: &[Change]| match pushed {
            [Change::Destination(destination)] => destination.known,
            other => panic!("{other:?}"),
        };
        put(&discovery, 9, "cart");
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
        let (discovery, mut lookups) = (Discovery::new("a", &[]), Lookups::default());
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
        let (discovery, mut lookups) = (Discovery::new("a", &[]), Lookups::default());
        put(&discovery, 2, "cart");
        for port in 0..3_000 {
            let answer = ask(&mut lookups, &discovery, &question(7, port)).unwrap();
            assert!(!answer.known && answer.ttl_ms > 0);
        }
        let kept = |lookups: &Lookups| lookups.destinations.answers.len();
        assert_eq!(lookups.destinations.negative, MAX_NEGATIVE);
        assert_eq!(kept(&lookups), MAX_NEGATIVE);
        assert!(
            ask(&mut lookups, &discovery, &question(2, 80))
                .unwrap()
                .known
        );
        assert_eq!(kept(&lookups), MAX_NEGATIVE + 1);
    }
}
