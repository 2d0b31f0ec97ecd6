//! What is measured, and with which program.

mod burst;
mod iperf;
mod paced;
mod wrk;

use std::time::Duration;

use anyhow::Result;
pub(crate) use burst::hold;
pub(crate) use paced::most;
pub(crate) use wrk::{Answers, Asked, requests};

use super::ways::Way;

/// Named results of one measurement.
pub(crate) type Values = Vec<(String, f64)>;

/// One measurement.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Measure {
    /// iperf3, this many streams.
    Throughput(u32),
    /// The same from the server to the client.
    Reverse(u32),
    /// wrk with keep-alive, this many connections.
    Requests(u32),
    /// Requests at a fixed rate, whatever becomes of those before.
    Paced,
    /// wrk with a new connection for each request, this many at a time.
    Connections(u32),
    /// So many connections begun at once.
    Burst(u32),
}

/// How to measure.
#[derive(Clone, Copy)]
pub(crate) struct How {
    pub(crate) seconds: u32,
    /// Requests a second of [`Measure::Paced`].
    pub(crate) rate: f64,
}

impl Measure {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 10] = [
        Self::Throughput(1),
        Self::Throughput(8),
        Self::Reverse(1),
        Self::Requests(1),
        Self::Requests(16),
        Self::Requests(64),
        Self::Paced,
        Self::Connections(1),
        Self::Connections(16),
        Self::Burst(2_000),
    ];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Throughput(streams) => format!("throughput, {}", of(streams, "stream")),
            Self::Reverse(streams) => format!("throughput, {}, reverse", of(streams, "stream")),
            Self::Requests(connections) => {
                format!("requests, {}", of(connections, "connection"))
            }
            Self::Paced => "requests at a fixed rate".to_owned(),
            Self::Connections(at_once) => format!("new connections, {at_once} at a time"),
            Self::Burst(count) => format!("{} connections at once", thousands(count)),
        }
    }

    /// Whether it is one of the few that the short form takes of every way.
    pub(crate) fn is_quick(self) -> bool {
        matches!(self, Self::Requests(16) | Self::Burst(_))
    }

    /// About how long it takes.
    pub(crate) fn expected(self, seconds: u32) -> Duration {
        let beside = Duration::from_millis(600);
        match self {
            Self::Burst(_) => Duration::from_secs(1),
            _ => Duration::from_secs(seconds.into()) + beside,
        }
    }

    /// Takes it once.
    pub(crate) fn take(self, way: &Way<'_>, how: How) -> Result<Values> {
        let seconds = how.seconds;
        match self {
            Self::Throughput(streams) => iperf::throughput(way, seconds, streams, false),
            Self::Reverse(streams) => iperf::throughput(way, seconds, streams, true),
            Self::Requests(connections) => {
                let got = requests(way, seconds, connections, Asked::KEPT)?.some()?;
                let which = of(connections, "connection");
                Ok(vec![
                    (format!("requests/s, {which}"), got.per_second),
                    (format!("p50 µs, {which}"), got.p50_us),
                    (format!("p99 µs, {which}"), got.p99_us),
                    (format!("CPU µs a request, {which}"), got.cpu_us),
                ])
            }
            Self::Paced => paced::take(way, seconds, how.rate),
            Self::Connections(at_once) => {
                let got = requests(way, seconds, at_once, Asked::NEW)?.some()?;
                let which = format!("{at_once} at a time");
                Ok(vec![
                    (format!("new connections/s, {which}"), got.per_second),
                    (format!("CPU µs a new connection, {which}"), got.cpu_us),
                ])
            }
            Self::Burst(count) => burst::take(way, count),
        }
    }
}

/// `1 stream`, `8 streams`.
fn of(count: u32, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// `2,000`.
fn thousands(count: u32) -> String {
    match (count / 1_000, count % 1_000) {
        (0, rest) => rest.to_string(),
        (thousands, rest) => format!("{thousands},{rest:03}"),
    }
}

fn patience(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds) + 20)
}
