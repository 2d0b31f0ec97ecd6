//! The pods' policies in the kernel programs. A change of the mesh concerns many pods, and the
//! kernel takes its time for a swap, but the same time for many: so they are gathered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_core::policy::PodPolicy;
use mesh_core::policy::kernel::KernelPolicy;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::shared::Shared;
use crate::capture::SlotPolicy;

/// How long the pods' tasks have to react to the same change.
const GATHER: Duration = Duration::from_millis(5);
/// When what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// One pod's policy as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) policy: KernelPolicy,
    /// What it refuses is counted and let through.
    pub(super) audit: bool,
}

type OfSlot = (u32, Arc<Rules>);

/// By slot: what is in force, and what shall be.
#[derive(Debug, Default)]
struct Book {
    in_force: BTreeMap<u32, Arc<Rules>>,
    wanted: BTreeMap<u32, Arc<Rules>>,
    /// What the kernel said to the last try.
    failed: BTreeMap<u32, String>,
    /// What they were made from, to say which policy it was that the kernel refused for.
    sources: BTreeMap<u32, Arc<PodPolicy>>,
}

impl Book {
    /// Whether there is something to do.
    fn want(&mut self, slot: u32, rules: Rules) -> bool {
        let news = self.in_force.get(&slot).is_none_or(|old| **old != rules);
        match news {
            true => self.wanted.insert(slot, Arc::new(rules)),
            false => self.wanted.remove(&slot),
        };
        news
    }

    fn forget(&mut self, slot: u32) {
        self.in_force.remove(&slot);
        self.wanted.remove(&slot);
        self.failed.remove(&slot);
        self.sources.remove(&slot);
    }

    fn done(&mut self, slot: u32, rules: &Arc<Rules>) {
        self.failed.remove(&slot);
        self.in_force.insert(slot, rules.clone());
        if self.wanted.get(&slot).is_some_and(|wanted| wanted == rules) {
            self.wanted.remove(&slot);
        }
    }

    /// Brings what is wanted into force, all at once or, where that fails, as far as it goes.
    /// Returns failures that are news.
    fn put_in_force(
        &mut self,
        set: &mut dyn FnMut(&[OfSlot]) -> Result<(), String>,
    ) -> Vec<(u32, String)> {
        let wanted: Vec<OfSlot> = self
            .wanted
            .iter()
            .map(|(slot, rules)| (*slot, rules.clone()))
            .collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        if set(&wanted).is_ok() {
            wanted
                .iter()
                .for_each(|(slot, rules)| self.done(*slot, rules));
            return Vec::new();
        }
        let mut news = Vec::new();
        for one in wanted {
            match set(std::slice::from_ref(&one)) {
                Ok(()) => self.done(one.0, &one.1),
                Err(why) => {
                    let old = self.failed.insert(one.0, why.clone());
                    news.extend((old.as_ref() != Some(&why)).then_some((one.0, why)));
                }
            }
        }
        news
    }
}

/// All pods' policies in the kernel.
#[derive(Debug, Default)]
pub(super) struct KernelRules {
    book: Mutex<Book>,
    news: Notify,
}

impl KernelRules {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod's policy shall be this one, made from `source`, soon.
    pub(super) fn want(&self, slot: u32, rules: Rules, source: Arc<PodPolicy>) {
        let mut book = self.book();
        book.sources.insert(slot, source);
        if book.want(slot, rules) {
            self.news.notify_one();
        }
    }

    /// What the policy of a slot was made from.
    pub(super) fn source(&self, slot: u32) -> Option<Arc<PodPolicy>> {
        self.book().sources.get(&slot).cloned()
    }

    /// A slot has no policy any more, or a fresh one.
    pub(super) fn forget(&self, slot: u32) {
        self.book().forget(slot);
    }

    /// Brings what is wanted into force, before it returns; the error of this slot.
    pub(super) fn settle(&self, shared: &Shared, slot: u32) -> Result<(), String> {
        self.put_in_force(shared);
        match self.book().failed.get(&slot) {
            Some(why) => Err(format!("the kernel did not take the pod's policy: {why}")),
            None => Ok(()),
        }
    }

    /// Whether nothing is left to do.
    fn put_in_force(&self, shared: &Shared) -> bool {
        let mut set = |rules: &[OfSlot]| {
            let policies = rules.iter().map(|(slot, rules)| SlotPolicy {
                slot: *slot,
                policy: &rules.policy,
                audit: rules.audit,
            });
            let policies: Vec<SlotPolicy<'_>> = policies.collect();
            let set = shared.capture().set_policies(&policies);
            set.map_err(|e| e.to_string())
        };
        let mut book = self.book();
        let failures = book.put_in_force(&mut set);
        let settled = book.wanted.is_empty();
        drop(book);
        for (slot, why) in failures {
            let pod = shared
                .pod_in(slot)
                .map_or_else(String::new, |key| key.to_string());
            tracing::error!(
                pod,
                slot,
                why,
                "the kernel did not take the pod's policy; the one before stays, trying on"
            );
        }
        settled
    }
}

/// Brings policies into force as they come, for ever.
pub(super) async fn keep(shared: Arc<Shared>) {
    loop {
        shared.kernel.news.notified().await;
        sleep(GATHER).await;
        while !shared.kernel.put_in_force(&shared) {
            sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(audit: bool) -> Rules {
        Rules {
            audit,
            ..Rules::default()
        }
    }

    #[test]
    fn pods_are_set_together_and_only_if_it_is_something_else() {
        let (mut book, mut calls) = (Book::default(), Vec::new());
        let mut put = |book: &mut Book| {
            book.put_in_force(&mut |rules| {
                calls.push(rules.iter().map(|(slot, _)| *slot).collect::<Vec<u32>>());
                Ok(())
            })
        };
        assert!(book.want(1, rules(false)) && book.want(2, rules(true)));
        assert!(put(&mut book).is_empty());
        assert!(!book.want(1, rules(false)) && book.want(2, rules(false)));
        put(&mut book);
        // Wanted and then not any more: nothing is to be done.
        assert!(book.want(1, rules(true)) && !book.want(1, rules(false)));
        put(&mut book);
        book.forget(1);
        assert!(book.want(1, rules(false)));
        put(&mut book);
        assert_eq!(calls, [vec![1, 2], vec![2], vec![1]]);
    }

    #[test]
    fn one_that_fails_holds_up_no_other_and_is_tried_again() {
        let mut book = Book::default();
        book.want(1, rules(false));
        book.want(2, rules(false));
        let mut fails = |rules: &[OfSlot]| match rules.iter().any(|(slot, _)| *slot == 1) {
            true => Err("full".to_owned()),
            false => Ok(()),
        };
        let failures = book.put_in_force(&mut fails);
        assert_eq!(failures, [(1, "full".to_owned())]);
        assert!(book.in_force.contains_key(&2) && book.wanted.contains_key(&1));
        // The same failure again is no news.
        assert!(book.put_in_force(&mut fails).is_empty());
        assert!(book.put_in_force(&mut |_| Ok(())).is_empty());
        assert!(book.wanted.is_empty() && book.failed.is_empty());
    }
}
