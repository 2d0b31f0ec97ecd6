//! A pod's connections that are older than its enrolment: which there are, until when they may go
//! on, and what ends one before. The kernel has the same list, and cuts by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mesh_common::{FlowKey, GRANDFATHERED_INBOUND, Grandfathered, mapped_v4};
use mesh_core::explain::Connection;
use mesh_core::policy::Direction;
use mesh_core::reason::Reason;
use tokio::time::Instant;

use super::asked::Asking;
use super::report::Older;
use super::sock_diag;

/// How much later than the agent the kernel ends a connection by itself: what tells the other end
/// of it has to pass the wall.
const GRACE: Duration = Duration::from_secs(5);
/// Connections that a report names; it says how many there are.
const NAMED: usize = 32;

/// One of them.
#[derive(Debug)]
pub(super) struct Grandfather {
    pub(super) connection: Connection,
    /// When it ends at the latest.
    pub(super) until: Instant,
    /// It was cut, and waits for being gone.
    pub(super) cut: bool,
    /// What audit has counted of it.
    pub(super) audited: Option<Reason>,
    /// Control is asked who is at the other end.
    pub(super) _asking: Option<Asking>,
}

/// All of a pod, by the cookies of their sockets.
#[derive(Debug, Default)]
pub(super) struct Grandfathers {
    pub(super) all: BTreeMap<u64, Grandfather>,
    /// When to look once more for what was on its way while the pod was enrolled.
    pub(super) settle_at: Option<Instant>,
}

impl Grandfathers {
    /// When something is to be done.
    pub(super) fn wake(&self) -> Option<Instant> {
        let standing = self.all.values().filter(|older| !older.cut);
        let ends = standing.map(|older| older.until);
        ends.chain(self.settle_at).min()
    }

    /// Those whose time is over.
    pub(super) fn ended(&self, now: Instant) -> Vec<u64> {
        let ended = |(_, older): &(&u64, &Grandfather)| !older.cut && older.until <= now;
        self.all
            .iter()
            .filter(ended)
            .map(|(cookie, _)| *cookie)
            .collect()
    }

    /// Forgets those that are not among `there`, and returns them.
    pub(super) fn keep_only(&mut self, there: &BTreeSet<u64>) -> Vec<u64> {
        let gone = self.all.keys().filter(|cookie| !there.contains(cookie));
        let gone: Vec<u64> = gone.copied().collect();
        for cookie in &gone {
            self.all.remove(cookie);
        }
        gone
    }

    /// For the pod's report: how many stand, when the last of them ends, and some by name.
    pub(super) fn report(&self, now: Instant, now_s: i64) -> Older {
        let standing = || self.all.values().filter(|older| !older.cut);
        let last = standing().map(|older| older.until).max();
        let left = last.map(|last| last.saturating_duration_since(now).as_secs());
        Older {
            connections: standing().count(),
            until_s: left.map(|left| now_s.saturating_add_unsigned(left)),
            peers: standing().take(NAMED).map(named).collect(),
        }
    }
}

fn named(older: &Grandfather) -> String {
    let Connection {
        direction,
        local,
        remote,
    } = older.connection;
    match direction {
        Direction::Inbound => format!("from {remote} to port {}", local.port()),
        Direction::Outbound => format!("to {remote} from port {}", local.port()),
    }
}

/// Which end of a socket's connection called, by the ports that its pod listens on.
pub(super) fn connection_of(
    socket: &sock_diag::Connection,
    listening: &BTreeSet<u16>,
) -> Connection {
    let (local, remote) = (socket.local, socket.remote);
    let direction = match listening.contains(&local.port()) {
        true => Direction::Inbound,
        false => Direction::Outbound,
    };
    Connection {
        direction,
        local,
        remote,
    }
}

/// What the wall is told. `clock_ns` is the kernel's clock at `now`.
pub(super) fn to_kernel(older: &Grandfather, now: Instant, clock_ns: u64) -> Grandfathered {
    let left = older.until.saturating_duration_since(now) + GRACE;
    let left_ns = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    let Connection {
        direction,
        local,
        remote,
    } = older.connection;
    Grandfathered {
        until_ns: clock_ns.saturating_add(left_ns),
        tuple: FlowKey {
            source: bytes(local.ip()),
            destination: bytes(remote.ip()),
            source_port: local.port(),
            destination_port: remote.port(),
        },
        flags: match direction {
            Direction::Inbound => GRANDFATHERED_INBOUND,
            Direction::Outbound => 0,
        },
    }
}

/// What the wall was told by an earlier supervisor.
pub(super) fn from_kernel(older: &Grandfathered, now: Instant, clock_ns: u64) -> Grandfather {
    let left = Duration::from_nanos(older.until_ns.saturating_sub(clock_ns));
    let FlowKey {
        source,
        destination,
        source_port,
        destination_port,
    } = older.tuple;
    let end = |bytes: [u8; 16], port| SocketAddr::new(Ipv6Addr::from(bytes).to_canonical(), port);
    Grandfather {
        connection: Connection {
            direction: match older.flags & GRANDFATHERED_INBOUND {
                0 => Direction::Outbound,
                _ => Direction::Inbound,
            },
            local: end(source, source_port),
            remote: end(destination, destination_port),
        },
        until: now + left.saturating_sub(GRACE),
        cut: false,
        audited: None,
        _asking: None,
    }
}

fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn older(direction: Direction, until: Instant) -> Grandfather {
        Grandfather {
            connection: Connection {
                direction,
                local: "10.0.0.2:7000".parse().unwrap(),
                remote: "[fd00::1]:4000".parse().unwrap(),
            },
            until,
            cut: false,
            audited: None,
            _asking: None,
        }
    }

    #[test]
    fn the_next_supervisor_finds_what_this_one_told_the_kernel() {
        let now = Instant::now();
        for direction in [Direction::Inbound, Direction::Outbound] {
            let before = older(direction, now + Duration::from_secs(60));
            let told = to_kernel(&before, now, 1_000);
            assert_eq!(told.until_ns, 65_000_001_000);
            let later = now + Duration::from_secs(20);
            let after = from_kernel(&told, later, 20_000_001_000);
            assert_eq!(after.connection, before.connection);
            assert_eq!(after.until, before.until);
        }
    }

    #[test]
    fn one_that_is_cut_is_no_longer_waited_for_or_reported_and_one_that_is_gone_is_forgotten() {
        let now = Instant::now();
        let mut all = Grandfathers::default();
        assert_eq!(all.wake(), None);
        for (cookie, seconds) in [(1, 1), (2, 2), (3, 3)] {
            let until = now + Duration::from_secs(seconds);
            all.all.insert(cookie, older(Direction::Inbound, until));
        }
        let later = now + Duration::from_secs(2);
        assert_eq!(all.ended(later), [1, 2]);
        all.all.get_mut(&1).unwrap().cut = true;
        assert_eq!(all.ended(later), [2]);
        assert_eq!(all.wake(), Some(now + Duration::from_secs(2)));
        let report = all.report(now, 1_000);
        assert_eq!((report.connections, report.until_s), (2, Some(1_003)));
        assert_eq!(report.peers[0], "from [fd00::1]:4000 to port 7000");
        assert_eq!(all.keep_only(&[2].into()), [1, 3]);
        assert_eq!(all.all.len(), 1);
    }
}
