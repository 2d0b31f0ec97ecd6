//! What connections cost that stand idle: memory of the processes that carry them, and of the
//! kernel beyond what the same connections cost it in plain TCP.

use anyhow::{Context, Result};

use super::measure::hold;
use super::results::Results;
use super::system;
use super::ways::{PLAIN, Way};

/// Opened at the same time.
const AT_ONCE: u32 = 16;
/// Opened before anything is weighed, so that what there is once is there.
const WARM_UP: u32 = 32;

/// Memory of the processes of a way before the first of its idle connections.
pub(crate) struct Fresh<'a> {
    way: &'a Way<'a>,
    private_kib: f64,
}

/// Weighs processes that have carried little yet: later their heaps have room that idle
/// connections would take without being seen.
pub(crate) fn weigh<'a>(ways: &'a [Way<'a>], results: &mut Results) -> Result<Vec<Fresh<'a>>> {
    let mut fresh = Vec::new();
    for way in ways {
        drop(hold(way, WARM_UP, AT_ONCE).context(way.name)?);
        let pids = (way.proxies)()?;
        let private_kib = system::private_kib(&pids)?;
        if !pids.is_empty() {
            let each = private_kib / 1024.0 / pids.len() as f64;
            results.add("private MiB a proxy process, idle", way.name, each);
        }
        fresh.push(Fresh { way, private_kib });
    }
    Ok(fresh)
}

/// Holds so many idle connections by each way in turn.
pub(crate) fn measure(fresh: &[Fresh<'_>], count: u32, results: &mut Results) -> Result<()> {
    let mut plain = None;
    for Fresh { way, private_kib } in fresh {
        let before = sockets(way)?;
        let held = hold(way, count, AT_ONCE).context(way.name)?;
        let kernel = (sockets(way)? - before) / f64::from(count);
        let pids = (way.proxies)()?;
        let private = (system::private_kib(&pids)? - private_kib) / f64::from(count);
        drop(held);
        if way.name == PLAIN {
            plain = Some(kernel);
            continue;
        }
        // Half of each: there are two sides, with a process each.
        let private = private / 2.0;
        let mut add = |what: &str, kib: f64| {
            let row = format!("KiB an idle connection, a side{what}");
            results.add(&row, way.name, kib);
        };
        add(": processes", private);
        if let Some(plain) = plain {
            let kernel = (kernel - plain) / 2.0;
            add(": kernel", kernel);
            add("", private + kernel);
        }
    }
    Ok(())
}

/// What the sockets at both ends of a way take, in KiB.
fn sockets(way: &Way<'_>) -> Result<f64> {
    let [client, server] = [&way.client.netns, &way.server.netns];
    Ok(system::sockets_kib(client)? + system::sockets_kib(server)?)
}

/// What the processes have after all the rest.
pub(crate) fn after(ways: &[Way<'_>], results: &mut Results) -> Result<()> {
    for way in ways {
        let pids = (way.proxies)()?;
        if !pids.is_empty() {
            let each = system::private_kib(&pids)? / 1024.0 / pids.len() as f64;
            results.add("private MiB a proxy process, after all", way.name, each);
        }
    }
    Ok(())
}
