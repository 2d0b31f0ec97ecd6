//! What is measured, and with which program.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use serde_json::Value;

use super::system;
use super::ways::Way;

/// Named results of one measurement.
pub(crate) type Results = Vec<(&'static str, f64)>;

/// One measurement.
#[derive(Clone, Copy)]
pub(crate) enum Measure {
    /// iperf3, this many streams.
    Throughput(u32),
    /// wrk with keep-alive, this many connections.
    Requests(u32),
    /// wrk with a new connection for each request, this many at a time.
    Connections(u32),
}

const GIB: f64 = 1_073_741_824.0;

impl Measure {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 7] = [
        Self::Throughput(1),
        Self::Throughput(8),
        Self::Requests(1),
        Self::Requests(16),
        Self::Requests(64),
        Self::Connections(1),
        Self::Connections(16),
    ];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Throughput(streams) => format!("throughput, {streams} streams"),
            Self::Requests(connections) => format!("requests, {connections} connections"),
            Self::Connections(at_once) => format!("new connections, {at_once} at a time"),
        }
    }

    /// Takes it once.
    pub(crate) fn take(self, way: &Way<'_>, seconds: u32) -> Result<Results> {
        match self {
            Self::Throughput(streams) => throughput(way, seconds, streams),
            Self::Requests(connections) => {
                let [rate, p50, p99] = match connections {
                    1 => REQUESTS_1,
                    16 => REQUESTS_16,
                    _ => REQUESTS_64,
                };
                let result = wrk(way, seconds, connections, false)?;
                Ok(vec![
                    (rate, result.per_second),
                    (p50, result.p50_us),
                    (p99, result.p99_us),
                ])
            }
            Self::Connections(at_once) => {
                let name = match at_once {
                    1 => "new connections/s, 1 at a time",
                    _ => "new connections/s, 16 at a time",
                };
                let result = wrk(way, seconds, at_once, true)?;
                Ok(vec![(name, result.per_second)])
            }
        }
    }
}

const REQUESTS_1: [&str; 3] = [
    "requests/s, 1 connection",
    "p50 µs, 1 connection",
    "p99 µs, 1 connection",
];
const REQUESTS_16: [&str; 3] = [
    "requests/s, 16 connections",
    "p50 µs, 16 connections",
    "p99 µs, 16 connections",
];
const REQUESTS_64: [&str; 3] = [
    "requests/s, 64 connections",
    "p50 µs, 64 connections",
    "p99 µs, 64 connections",
];

fn throughput(way: &Way<'_>, seconds: u32, streams: u32) -> Result<Results> {
    let busy = system::busy_s()?;
    let ran = way
        .client
        .command("iperf3")
        .args(["-J", "-c", &way.iperf.ip().to_string()])
        .args(["-p", &way.iperf.port().to_string()])
        .args(["-t", &seconds.to_string(), "-P", &streams.to_string()])
        .timeout(patience(seconds))
        .output()?;
    let busy = system::busy_s()? - busy;
    let answer: Value = serde_json::from_str(&ran.stdout)
        .with_context(|| format!("iperf3 said: {}{}", ran.stdout, ran.stderr))?;
    if let Some(error) = answer["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &answer["end"];
    let number = |of: &Value, name: &str| {
        let value = of[name].as_f64();
        value.with_context(|| format!("iperf3 reports no {name}: {answer}"))
    };
    let bits = number(&end["sum_received"], "bits_per_second")?;
    let bytes = number(&end["sum_received"], "bytes")?;
    ensure!(bytes > 0.0, "no byte arrived");
    // Both ends of iperf3, as shares of one CPU over the run.
    let shares = &end["cpu_utilization_percent"];
    let apps = number(shares, "host_total")? + number(shares, "remote_total")?;
    let apps_s = apps / 100.0 * f64::from(seconds);
    let (rate, cost) = match streams {
        1 => ("Gbit/s, 1 stream", "CPU s/GiB less the apps', 1 stream"),
        _ => ("Gbit/s, 8 streams", "CPU s/GiB less the apps', 8 streams"),
    };
    let cost_s = (busy - apps_s) / (bytes / GIB);
    Ok(vec![(rate, bits / 1e9), (cost, cost_s)])
}

struct Wrk {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

fn wrk(way: &Way<'_>, seconds: u32, connections: u32, close: bool) -> Result<Wrk> {
    let mut command = way
        .client
        .command("wrk")
        .args(["-t1", "--latency", "-c", &connections.to_string()])
        .args(["-d", &format!("{seconds}s")])
        .timeout(patience(seconds));
    if close {
        command = command.args(["-H", "Connection: close"]);
    }
    let said = command
        .arg(format!("http://{}/", way.http))
        .output()?
        .ok()?;
    let trouble = said
        .lines()
        .find(|line| line.contains("Socket errors") || line.contains("Non-2xx"));
    if let Some(trouble) = trouble {
        eprintln!("  wrk: {}", trouble.trim());
    }
    let field = |name: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(str::trim)
            .with_context(|| format!("wrk printed no {name}: {said}"))
    };
    let per_second: f64 = field("Requests/sec:")?.parse()?;
    ensure!(per_second > 0.0, "no request was answered: {said}");
    Ok(Wrk {
        per_second,
        p50_us: microseconds(field("50%")?)?,
        p99_us: microseconds(field("99%")?)?,
    })
}

/// `123.00us`, `1.50ms` or `2.00s`.
fn microseconds(text: &str) -> Result<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let parsed = units.iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    });
    parsed.with_context(|| format!("no time: {text:?}"))
}

fn patience(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds) + 20)
}

#[cfg(test)]
mod tests {
    use super::microseconds;

    #[test]
    fn times_of_wrk_are_read() {
        let read = |text| microseconds(text).unwrap();
        assert_eq!(
            [read("71.00us"), read("1.50ms"), read("2.00s")],
            [71.0, 1500.0, 2e6]
        );
        assert!(microseconds("fast").is_err());
    }
}
