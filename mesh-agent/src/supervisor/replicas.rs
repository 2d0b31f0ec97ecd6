//! Where control is: its replicas, in an order of this node's own, and which of them is in use.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;
use tonic::transport::Uri;

const LOOK_UP_PATIENCE: Duration = Duration::from_secs(5);

/// The replicas of control that are known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replicas {
    /// Those that each `--control` stands for.
    found: Vec<BTreeSet<SocketAddr>>,
    /// All of them. Every node has an order of its own, so that they spread out.
    order: Vec<SocketAddr>,
    in_use: usize,
}

impl Replicas {
    /// All of them.
    pub(super) fn all(&self) -> &[SocketAddr] {
        &self.order
    }

    /// The one in use; `None` while none is known.
    pub(super) fn in_use(&self) -> Option<SocketAddr> {
        self.order.get(self.in_use).copied()
    }

    /// Takes any of them; `random` is uniform over all of `u32`.
    pub(super) fn choose(&mut self, random: u32) {
        self.in_use = random as usize % self.order.len().max(1);
    }

    /// Goes on to the next.
    pub(super) fn go_on(&mut self) {
        self.in_use = (self.in_use + 1) % self.order.len().max(1);
    }

    /// Takes what a look-up has found: for each `--control` its addresses, or `None` where the
    /// look-up failed, whose addresses stay what they were. The one in use stays that while it is
    /// among them. `random` is uniform over all of `u32`.
    pub(super) fn update(
        &mut self,
        found: Vec<Option<BTreeSet<SocketAddr>>>,
        mut random: impl FnMut() -> u32,
    ) {
        self.found.resize_with(found.len(), BTreeSet::new);
        for (known, found) in self.found.iter_mut().zip(found) {
            if let Some(found) = found {
                *known = found;
            }
        }
        let in_use = self.in_use();
        let known: BTreeSet<_> = self.found.iter().flatten().copied().collect();
        self.order.retain(|address| known.contains(address));
        for address in known {
            if !self.order.contains(&address) {
                let place = random() as usize % (self.order.len() + 1);
                self.order.insert(place, address);
            }
        }
        let place = |used: SocketAddr| self.order.iter().position(|a| *a == used);
        self.in_use = in_use.and_then(place).unwrap_or(0);
    }
}

/// Looks all of them up: the addresses of each, or why they are not known.
pub(super) async fn look_up(given: &[Uri]) -> Vec<Result<BTreeSet<SocketAddr>, String>> {
    let mut found = Vec::new();
    for uri in given {
        let addresses = timeout(LOOK_UP_PATIENCE, addresses(uri)).await;
        let addresses = addresses.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        found.push(addresses.map_err(|why| format!("{uri}: {why}")));
    }
    found
}

/// Whether an address has to be looked up.
pub(super) fn is_name(uri: &Uri) -> bool {
    address(uri).is_none()
}

fn address(uri: &Uri) -> Option<IpAddr> {
    let host = uri.host()?;
    host.trim_matches(['[', ']']).parse().ok()
}

async fn addresses(uri: &Uri) -> Result<BTreeSet<SocketAddr>, String> {
    // Both were made sure of when the options were read.
    let (host, port) = uri.host().zip(uri.port_u16()).ok_or("not HOST:PORT")?;
    if let Some(address) = address(uri) {
        return Ok([SocketAddr::new(address, port)].into());
    }
    let found = lookup_host((host, port)).await.map_err(|e| e.to_string())?;
    let found: BTreeSet<_> = found.collect();
    match found.is_empty() {
        true => Err("the name has no address".to_owned()),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(lists: &[Option<&[u16]>]) -> Vec<Option<BTreeSet<SocketAddr>>> {
        let address = |port: &u16| SocketAddr::from(([10, 0, 0, 1], *port));
        let list = |ports: &[u16]| ports.iter().map(address).collect();
        lists.iter().map(|ports| ports.map(list)).collect()
    }

    fn ports(replicas: &Replicas) -> Vec<u16> {
        replicas.all().iter().map(SocketAddr::port).collect()
    }

    #[test]
    fn nodes_begin_with_different_replicas_and_go_round() {
        let with = |drawn: u32| {
            let mut replicas = Replicas::default();
            replicas.update(found(&[Some(&[1]), Some(&[2]), Some(&[3])]), || drawn);
            replicas
        };
        assert_ne!(with(0).in_use(), with(5).in_use());
        let mut replicas = with(5);
        let mut used = BTreeSet::new();
        for _ in 0..3 {
            used.extend(replicas.in_use());
            replicas.go_on();
        }
        assert_eq!(used.len(), 3);
        assert_eq!(replicas.in_use(), with(5).in_use());
    }

    #[test]
    fn the_one_in_use_is_kept_while_it_is_known() {
        let mut replicas = Replicas::default();
        assert_eq!(replicas.in_use(), None);
        replicas.go_on();
        replicas.update(found(&[Some(&[1]), Some(&[2, 3])]), || u32::MAX);
        replicas.go_on();
        let used = replicas.in_use().unwrap();
        // Others come, always before it.
        replicas.update(found(&[Some(&[1]), Some(&[2, 3, 4, 5])]), || 0);
        assert_eq!((replicas.in_use(), replicas.all().len()), (Some(used), 5));
        // A name that can't be looked up stands for what it stood for.
        replicas.update(found(&[Some(&[6]), None]), || 0);
        let mut known = ports(&replicas);
        known.sort_unstable();
        assert_eq!(known, [2, 3, 4, 5, 6]);
        replicas.update(found(&[Some(&[7]), Some(&[])]), || 0);
        assert_eq!(ports(&replicas), [7]);
        assert_eq!(replicas.in_use().unwrap().port(), 7);
    }

    #[tokio::test]
    async fn addresses_stand_for_themselves_and_names_for_all_that_they_have() {
        let given: Vec<Uri> = ["https://10.0.0.1:1", "https://[fd00::1]:2"]
            .map(|uri| uri.parse().unwrap())
            .into();
        assert!(!given.iter().any(is_name));
        let found = look_up(&given).await;
        let expected = ["10.0.0.1:1", "[fd00::1]:2"].map(|a| a.parse::<SocketAddr>().unwrap());
        assert_eq!(found, expected.map(|address| Ok([address].into())));
        let named: Uri = "https://localhost:3".parse().unwrap();
        assert!(is_name(&named));
        let found = look_up(&[named]).await.remove(0).unwrap();
        assert!(!found.is_empty() && found.iter().all(|a| a.ip().is_loopback()));
    }
}
