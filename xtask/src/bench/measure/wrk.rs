//! Closed-loop HTTP requests, by wrk.

use anyhow::{Context, Result, ensure};

use super::super::system;
use super::super::ways::Way;
use super::patience;

/// What is asked, and how.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// A new connection for each request.
    close: bool,
    path: &'a str,
}

impl<'a> Asked<'a> {
    pub(crate) const KEPT: Asked<'static> = Asked::path("/");
    pub(crate) const NEW: Asked<'static> = Asked {
        close: true,
        path: "/",
    };

    /// That path, on connections that are kept.
    pub(crate) const fn path(path: &'a str) -> Self {
        Self { close: false, path }
    }
}

/// What came of it.
pub(crate) struct Answers {
    /// Whether there was one at all.
    answered: bool,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU time of the whole system less the apps', by the request.
    pub(crate) cpu_us: f64,
    /// Connections that could not be opened, or broke.
    broken: u64,
}

impl Answers {
    /// An error if there was none.
    pub(super) fn some(self) -> Result<Self> {
        ensure!(self.answered, "no request was answered");
        Ok(self)
    }

    /// None, and why, if connections failed: the rest had less to do.
    pub(crate) fn of_all(self) -> Result<Self, String> {
        match self {
            Self {
                answered: false, ..
            } => Err("no request was answered".to_owned()),
            Self { broken: 1.., .. } => Err(format!("{} connections failed", self.broken)),
            all => Ok(all),
        }
    }
}

/// As many requests as so many connections can do.
pub(crate) fn requests(
    way: &Way<'_>,
    seconds: u32,
    connections: u32,
    asked: Asked<'_>,
) -> Result<Answers> {
    let mut client = way
        .client
        .command("wrk")
        .args(["-t1", "--latency", "-c", &connections.to_string()])
        .args(["-d", &format!("{seconds}s")]);
    if asked.close {
        client = client.args(["-H", "Connection: close"]);
    }
    let client = client.arg(format!("http://{}{}", way.http, asked.path));
    let (said, cpu_s) = system::run(client, patience(seconds), &[&way.servers.nginx])?;
    let lines = || said.lines().map(str::trim);
    for trouble in lines().filter(|l| l.starts_with("Socket errors") || l.starts_with("Non-2xx")) {
        eprintln!("  wrk: {trouble}");
    }
    let field = |name: &str| {
        let line = lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
            .with_context(|| format!("wrk printed no {name}: {said}"))
    };
    let all = lines().find_map(|line| line.split_once(" requests in "));
    let (all, _) = all.with_context(|| format!("wrk did not say how many requests: {said}"))?;
    let all: f64 = all.parse()?;
    Ok(Answers {
        answered: all > 0.0,
        per_second: field("Requests/sec:")?.parse()?,
        p50_us: microseconds(field("50%")?)?,
        p99_us: microseconds(field("99%")?)?,
        cpu_us: cpu_s * 1e6 / all,
        broken: broken(&said),
    })
}

/// Of `Socket errors: connect 0, read 4, write 0, timeout 0` all but the last: an answer that
/// took longer than wrk waits came on a connection that stands.
fn broken(said: &str) -> u64 {
    let line = said.lines().find_map(|l| l.split_once("Socket errors: "));
    let parts = line.map_or("", |(_, parts)| parts).split(", ");
    let parts = parts.filter(|part| !part.starts_with("timeout"));
    let counts = parts.filter_map(|part| part.split_once(' ')?.1.parse::<u64>().ok());
    counts.sum()
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

#[cfg(test)]
mod tests {
    use super::{broken, microseconds};

    #[test]
    fn times_of_wrk_are_read() {
        let read = |text| microseconds(text).unwrap();
        assert_eq!(
            [read("71.00us"), read("1.50ms"), read("2.00s")],
            [71.0, 1500.0, 2e6]
        );
        assert!(microseconds("fast").is_err());
    }

    #[test]
    fn late_answers_break_nothing() {
        let said = "Running\n  Socket errors: connect 1, read 4, write 2, timeout 9\nDone";
        assert_eq!((broken(said), broken("Running")), (7, 0));
    }
}
