//! Addresses that control is asked about: those that this node's workers have asked about, and
//! the resolvers that the operator gave. Control tells of each who is there, and every change of
//! it, until nobody has used it for a while.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Most addresses of a node; control takes 65,536 names on a stream.
const MAX_ADDRESSES: usize = 60_000;
/// How long an address is followed that no worker uses: a pod that comes back finds it there.
pub(super) const LINGER: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Use {
    users: usize,
    /// Since when it has none.
    unused: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    addresses: HashMap<IpAddr, Use>,
    /// Those that control has not been asked about.
    new: Vec<IpAddr>,
}

/// All addresses that this node asks control about.
#[derive(Debug, Default)]
pub(super) struct Asked {
    state: Mutex<State>,
    news: Notify,
}

/// As long as it is held, control is asked about an address.
#[derive(Debug)]
pub(super) struct Asking {
    asked: Arc<Asked>,
    address: IpAddr,
}

impl Asked {
    /// Control shall tell of an address. `None` where the node asks for too many already: who is
    /// there is not known then.
    pub(super) fn ask(self: &Arc<Self>, address: IpAddr) -> Option<Asking> {
        let mut state = self.lock();
        if !state.addresses.contains_key(&address) {
            if state.addresses.len() >= MAX_ADDRESSES {
                counter!("nodemesh_discovery_lookups_refused_total").increment(1);
                return None;
            }
            state.new.push(address);
            self.news.notify_one();
        }
        let used = state.addresses.entry(address).or_default();
        used.users += 1;
        used.unused = None;
        gauge!("nodemesh_discovery_addresses").set(state.addresses.len() as f64);
        drop(state);
        Some(Asking {
            asked: self.clone(),
            address,
        })
    }

    /// Addresses that were followed by an earlier run, for workers that may come back to them.
    pub(super) fn restore(&self, addresses: impl Iterator<Item = IpAddr>, now: Instant) {
        let mut state = self.lock();
        for address in addresses {
            let used = state.addresses.entry(address).or_default();
            if used.users == 0 {
                used.unused = Some(now);
            }
        }
    }

    /// Waits for addresses that control has not been asked about.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Those.
    pub(super) fn take_new(&self) -> Vec<IpAddr> {
        std::mem::take(&mut self.lock().new)
    }

    /// Takes out what nobody has used since `before`.
    pub(super) fn take_unused(&self, before: Instant) -> Vec<IpAddr> {
        let mut state = self.lock();
        let unused = state.addresses.iter();
        let unused = unused.filter(|(_, used)| used.unused.is_some_and(|since| since <= before));
        let unused: Vec<IpAddr> = unused.map(|(address, _)| *address).collect();
        for address in &unused {
            state.addresses.remove(address);
        }
        gauge!("nodemesh_discovery_addresses").set(state.addresses.len() as f64);
        unused
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut state = self.asked.lock();
        if let Some(used) = state.addresses.get_mut(&self.address) {
            used.users -= 1;
            if used.users == 0 {
                used.unused = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn an_address_is_asked_about_once_and_followed_while_somebody_uses_it() {
        let asked = Arc::new(Asked::default());
        let users = [asked.ask(address(1)), asked.ask(address(1))];
        assert_eq!(asked.take_new(), [address(1)]);
        assert!(asked.take_new().is_empty());
        let [first, second] = users;
        drop(first);
        assert!(asked.take_unused(Instant::now()).is_empty());
        drop(second);
        // Not for long enough.
        assert!(asked.take_unused(Instant::now() - LINGER).is_empty());
        // Back again, and for good.
        let third = asked.ask(address(1));
        assert!(asked.take_new().is_empty() && asked.take_unused(Instant::now()).is_empty());
        drop(third);
        assert_eq!(asked.take_unused(Instant::now()), [address(1)]);
        let _again = asked.ask(address(1));
        assert_eq!(asked.take_new(), [address(1)]);
    }

    #[test]
    fn what_an_earlier_run_followed_waits_for_its_users() {
        let asked = Arc::new(Asked::default());
        let now = Instant::now();
        let used = asked.ask(address(1));
        asked.restore([address(1), address(2)].into_iter(), now);
        assert_eq!(asked.take_new(), [address(1)]);
        assert_eq!(asked.take_unused(now), [address(2)]);
        drop(used);
    }

    #[test]
    fn a_node_asks_about_a_bounded_number() {
        let asked = Arc::new(Asked::default());
        let count = u32::try_from(MAX_ADDRESSES).unwrap();
        let nth = |n: u32| IpAddr::V4(n.into());
        let all: Vec<_> = (0..count).map(|n| asked.ask(nth(n)).unwrap()).collect();
        assert!(asked.ask(nth(count)).is_none());
        assert!(asked.ask(nth(0)).is_some());
        drop(all);
    }
}
