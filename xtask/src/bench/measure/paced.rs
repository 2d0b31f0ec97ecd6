//! Latency at a fixed rate, by the lab's own program: requests are sent when they are due, and
//! their latency counts from then.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_lab::aggressor::{Calls, Load, Site, Victim};

use super::super::ways::Way;
use super::Values;

/// Connections that take turns.
const CONNECTIONS: usize = 16;

/// Before anything counts.
const LEAD: Duration = Duration::from_millis(300);

/// Requests a second of that program's kind when each connection asks again as soon as it is
/// answered.
pub(crate) fn most(way: &Way<'_>, seconds: u32) -> Result<f64> {
    let site = Site {
        client: way.client,
        serve: way.serve,
        flood: (way.serve, way.serve),
        nowhere: way.serve,
        door: None,
    };
    let time = Duration::from_secs(seconds.into());
    let done = Load::SmallRequests
        .start(&site, CONNECTIONS, time)?
        .finish()?;
    ensure!(done.done > 0, "no request was answered: {done:?}");
    Ok(done.done as f64 / done.seconds)
}

pub(super) fn take(way: &Way<'_>, seconds: u32, rate: f64) -> Result<Values> {
    let time = LEAD + Duration::from_secs(seconds.into());
    let calls = Calls {
        to: way.serve,
        connections: CONNECTIONS,
        rate,
        time,
        counts: LEAD..time,
    };
    let seen = Victim::start(way.client, &calls)?.finish()?;
    ensure!(seen.measured > 0, "no request was answered: {seen:?}");
    let named = |what: &str| format!("{what}, at half the peer's most");
    Ok(vec![
        (named("p50 µs"), seen.p50_us as f64),
        (named("p99 µs"), seen.p99_us as f64),
        (named("failed requests"), seen.errors as f64),
    ])
}
