//! What this worker's own connections say of a destination's endpoints, and the order in which
//! they are tried. It outlives discovery's answers: see [`Balancer::after`].

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::rc::Rc;

use mesh_core::balance::{self, Order};
use mesh_core::outlier::{self, Outlier};
use tokio::time::Instant;

use super::destination::{Destination, Endpoint};
use super::metrics::{Count, Metrics};

/// Of one endpoint.
#[derive(Debug, Default)]
struct Record {
    open: Cell<u32>,
    outlier: Cell<Outlier>,
}

/// Of one destination: a record for each endpoint, in the same order.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    records: Vec<Rc<Record>>,
    /// Connections balanced so far.
    turn: Cell<usize>,
    /// Random numbers: the hash, by random keys, of how many were drawn before.
    random: RandomState,
    drawn: Cell<u64>,
}

impl Balancer {
    /// For these endpoints. Those that an earlier answer had keep their records; the others'
    /// go, so that there are never more records than endpoints.
    pub(crate) fn after(before: Option<&Destination>, endpoints: &[Rc<Endpoint>]) -> Self {
        let Some(before) = before else {
            let records = endpoints.iter().map(|_| Rc::default());
            return Self {
                records: records.collect(),
                ..Self::default()
            };
        };
        let old = before.endpoints.iter().zip(&before.balancer.records);
        let old: HashMap<_, _> = old
            .map(|(endpoint, record)| (key(endpoint), record))
            .collect();
        let records = endpoints.iter().map(|endpoint| {
            let record = old.get(&key(endpoint));
            record.map_or_else(Rc::default, |record| Rc::clone(record))
        });
        Self {
            records: records.collect(),
            turn: before.balancer.turn.clone(),
            random: before.balancer.random.clone(),
            drawn: before.balancer.drawn.clone(),
        }
    }

    fn draw(&self) -> u32 {
        let drawn = self.drawn.get();
        self.drawn.set(drawn.wrapping_add(1));
        let hash = self.random.hash_one(drawn);
        u32::try_from(hash >> 32).unwrap_or(0)
    }

    fn ejected(&self, now: std::time::Instant) -> usize {
        let records = self.records.iter();
        records.filter(|r| r.outlier.get().is_ejected(now)).count()
    }
}

fn key(endpoint: &Endpoint) -> (&str, SocketAddr) {
    (&endpoint.workload_uid, endpoint.address)
}

/// One endpoint in its turn.
pub(crate) struct Candidate {
    pub(crate) endpoint: Rc<Endpoint>,
    record: Rc<Record>,
    of: Rc<Destination>,
}

/// Every endpoint of `destination` once, in the order in which one connection tries them.
pub(crate) fn candidates(destination: &Rc<Destination>) -> impl Iterator<Item = Candidate> + use<> {
    let (of, now) = (destination.clone(), Instant::now().into_std());
    let balancer = &of.balancer;
    let views = of.endpoints.iter().zip(&balancer.records);
    let views = views.map(|(endpoint, record)| balance::Candidate {
        open: record.open.get(),
        distance: endpoint.distance,
        unhealthy: endpoint.unhealthy,
        ejected: record.outlier.get().is_ejected(now),
    });
    let turn = balancer.turn.get();
    balancer.turn.set(turn.wrapping_add(1));
    let random = {
        let of = of.clone();
        move || of.balancer.draw()
    };
    let traffic = &of.traffic;
    let order = Order::new(traffic.balancing, traffic.locality, views, turn, random);
    order.map(move |index| Candidate {
        endpoint: of.endpoints[index].clone(),
        record: of.balancer.records[index].clone(),
        of: of.clone(),
    })
}

impl Candidate {
    /// Counts a connection to it, from its first attempt to its end.
    pub(crate) fn open(&self) -> OpenConnection {
        self.record.open.set(self.record.open.get() + 1);
        OpenConnection(self.record.clone())
    }

    /// It has answered a connection.
    pub(crate) fn succeeded(&self) {
        let mut outlier = self.record.outlier.get();
        outlier.succeeded();
        self.record.outlier.set(outlier);
    }

    /// It has failed a connection.
    pub(crate) fn failed(&self, metrics: &Metrics) {
        let now = Instant::now().into_std();
        let rules = &self.of.traffic.outliers;
        let all = &self.of.balancer;
        let mut outlier = self.record.outlier.get();
        let has_room = || outlier::has_room(rules, all.records.len(), all.ejected(now));
        if outlier.failed(rules, now, has_room) {
            metrics.add(Count::OutlierEjections, 1);
        }
        self.record.outlier.set(outlier);
    }
}

/// A connection that is open, or being opened, to an endpoint.
pub(crate) struct OpenConnection(Rc<Record>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}
