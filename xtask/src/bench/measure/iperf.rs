//! Bulk throughput, by iperf3.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::super::system;
use super::super::ways::Way;
use super::{Values, of, patience};

const GIB: f64 = 1_073_741_824.0;

/// So many streams from the client to its server, or back.
pub(super) fn throughput(
    way: &Way<'_>,
    seconds: u32,
    streams: u32,
    reverse: bool,
) -> Result<Values> {
    let mut client = way
        .client
        .command("iperf3")
        .args(["-J", "-c", &way.iperf.ip().to_string()])
        .args(["-p", &way.iperf.port().to_string()])
        .args(["-t", &seconds.to_string(), "-P", &streams.to_string()]);
    if reverse {
        client = client.arg("-R");
    }
    let (said, cpu_s) = system::run(client, patience(seconds), &[&way.servers.iperf])?;
    let answer: Value =
        serde_json::from_str(&said).with_context(|| format!("iperf3 said: {said}"))?;
    if let Some(error) = answer["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &answer["end"]["sum_received"];
    let number = |name: &str| {
        let value = received[name].as_f64();
        value.with_context(|| format!("iperf3 reports no {name}: {answer}"))
    };
    let (bits, bytes) = (number("bits_per_second")?, number("bytes")?);
    ensure!(bytes > 0.0, "no byte arrived");
    let mut which = of(streams, "stream");
    if reverse {
        which.push_str(", reverse");
    }
    Ok(vec![
        (format!("Gbit/s, {which}"), bits / 1e9),
        (format!("CPU s a GiB, {which}"), cpu_s / (bytes / GIB)),
    ])
}
