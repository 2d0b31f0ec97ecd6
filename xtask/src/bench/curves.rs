//! How cost grows: with connections, with the size of an answer, with policies.

use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_lab::{Lab, Pod};

use super::measure::{Answers, Asked, requests};
use super::policies::Policies;
use super::results::Results;
use super::system;
use super::ways::{ENVOY, HAPROXY, MESH, RELAYS, Way};

/// Connections of the curves over other things.
const CONNECTIONS: u32 = 16;

/// A proxy that takes two descriptors for each of so many connections is at its limit: a process
/// may often have no more than 20,000, and that Envoy ends.
const MANY: u32 = 10_000;

/// One point of one curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Point {
    /// So many connections that are kept.
    Connections(u32),
    /// Answers of so many bytes.
    Bytes(u32),
    /// So many policies for the server's namespace.
    Policies(u32),
}

const ALL: &[Point] = &[
    Point::Connections(1),
    Point::Connections(10),
    Point::Connections(100),
    Point::Connections(1_000),
    Point::Connections(MANY),
    Point::Bytes(64),
    Point::Bytes(1 << 10),
    Point::Bytes(16 << 10),
    Point::Bytes(128 << 10),
    Point::Bytes(1 << 20),
    Point::Policies(0),
    Point::Policies(10),
    Point::Policies(100),
    Point::Policies(1_000),
    Point::Policies(10_000),
];

const SHORT: &[Point] = &[
    Point::Connections(100),
    Point::Bytes(1 << 20),
    Point::Policies(10),
];

impl Point {
    /// Those to measure, in their order.
    pub(crate) fn all(short: bool) -> &'static [Self] {
        if short { SHORT } else { ALL }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Connections(count) => format!("curve, {count} connections"),
            Self::Bytes(bytes) => format!("curve, {bytes} bytes"),
            Self::Policies(count) => format!("curve, {count} policies"),
        }
    }

    /// For how long it is measured. Connections are opened within that time.
    fn seconds(self, shortest: u32) -> u32 {
        match self {
            Self::Connections(count) => shortest.max((count / 300).min(10)),
            Self::Bytes(_) | Self::Policies(_) => shortest,
        }
    }

    /// About how long it takes.
    pub(crate) fn expected(self, shortest: u32) -> Duration {
        let beside = match self {
            Self::Connections(MANY) | Self::Policies(10_000) => 2_500,
            _ => 200,
        };
        Duration::from_secs(self.seconds(shortest).into()) + Duration::from_millis(beside)
    }

    /// Whether there is such a thing by that way.
    pub(crate) fn concerns(self, way: &Way<'_>) -> bool {
        match self {
            Self::Policies(_) => way.name == MESH,
            Self::Connections(count) => {
                count < MANY || ![RELAYS, HAPROXY, ENVOY].contains(&way.name)
            }
            Self::Bytes(_) => true,
        }
    }

    /// Takes it once.
    pub(crate) fn take(
        self,
        lab: &Lab,
        way: &Way<'_>,
        shortest: u32,
        results: &mut Results,
    ) -> Result<()> {
        let seconds = self.seconds(shortest);
        let mut put = |curve: &str, at: u32, value: f64| {
            results.point(curve, way.name, at.into(), value);
        };
        match self {
            Self::Connections(count) => {
                let got = requests(way, seconds, count, Asked::KEPT)?;
                // Many connections take a while to be gone.
                system::wait_quiet(count / 1_000);
                if let Some(got) = whole(got) {
                    put("requests/s by connections", count, got.per_second);
                    put("p99 µs by connections", count, got.p99_us);
                    put("CPU µs a request by connections", count, got.cpu_us);
                }
            }
            Self::Bytes(bytes) => {
                let path = format!("/files/{}", file(way.server, bytes)?);
                let asked = Asked::path(&path);
                if let Some(got) = whole(requests(way, seconds, CONNECTIONS, asked)?) {
                    put("requests/s by bytes of an answer", bytes, got.per_second);
                    put("CPU µs a request by bytes of an answer", bytes, got.cpu_us);
                }
            }
            Self::Policies(count) => {
                let begun = Instant::now();
                let policies = Policies::put(lab, way.server.namespace(), count)?;
                let took = begun.elapsed();
                let got = requests(way, seconds, CONNECTIONS, Asked::NEW)?;
                policies.remove()?;
                if count > 0 {
                    let ms = took.as_secs_f64() * 1e3;
                    put("ms until policies are in force", count, ms);
                }
                if let Some(got) = whole(got) {
                    put("new connections/s by policies", count, got.per_second);
                    put("CPU µs a new connection by policies", count, got.cpu_us);
                }
            }
        }
        Ok(())
    }
}

/// Says why there is no point, if there is none.
fn whole(got: Answers) -> Option<Answers> {
    let whole = got.of_all();
    whole.inspect_err(|why| eprintln!("  no point: {why}")).ok()
}

/// A file of that size for nginx to serve.
fn file(server: &Pod, bytes: u32) -> Result<String> {
    let name = format!("{bytes}.bin");
    if !server.folder.join(&name).exists() {
        server.write(&name, vec![b'x'; bytes.try_into()?])?;
    }
    Ok(name)
}
