//! Many connections, by the lab's own program: begun at once, or held.

use anyhow::{Context, Result, ensure};
use mesh_lab::{App, wait};
use serde_json::Value;

use super::super::system;
use super::super::ways::Way;
use super::{Values, thousands};

/// Seconds that connections are kept unless they are dropped before.
const KEPT_S: u32 = 60;

/// Connections that stand, each after one answer.
pub(crate) struct Held {
    _app: App,
    said: Value,
}

impl Held {
    fn number(&self, name: &str) -> Result<f64> {
        let number = self.said[name].as_f64();
        number.with_context(|| format!("no {name}: {}", self.said))
    }
}

/// Opens so many connections to nginx, at most so many unanswered at a time, and keeps them.
pub(crate) fn hold(way: &Way<'_>, count: u32, at_once: u32) -> Result<Held> {
    let app = way
        .client
        .command("mesh-lab-load")
        .args(["hold", &way.http.to_string(), &at_once.to_string()])
        .args([KEPT_S, count].map(|number| number.to_string()))
        .spawn()?;
    let said = wait::until("answers on all connections", wait::PATIENCE * 3, || {
        Ok(app.stdout().lines().next().map(str::to_owned))
    })
    .with_context(|| app.stderr())?;
    let said = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
    let held = Held { _app: app, said };
    let answered = held.number("answered")?;
    ensure!(answered > 0.0, "no connection was answered: {}", held.said);
    Ok(held)
}

/// All at once.
pub(super) fn take(way: &Way<'_>, count: u32) -> Result<Values> {
    let overflows = || -> Result<f64> {
        let pods = [way.client, way.server];
        pods.iter()
            .map(|pod| system::listen_overflows(&pod.netns))
            .sum()
    };
    let before = overflows()?;
    let held = hold(way, count, count)?;
    let overflows = overflows()? - before;
    let named = |what: &str| format!("{what}, {} at once", thousands(count));
    Ok(vec![
        (named("p50 ms"), held.number("p50_us")? / 1e3),
        (named("p99 ms"), held.number("p99_us")? / 1e3),
        (named("listen overflows"), overflows),
        (named("failed connections"), held.number("errors")?),
    ])
}
