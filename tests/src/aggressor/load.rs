//! Loads: which there are, started and ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{number, seconds, told};
use crate::app::App;
use crate::pod::Pod;

/// How long a load may take beyond its time.
const MAY_END_IN: Duration = Duration::from_secs(20);

/// A load that `mesh-lab-load` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Load {
    /// Streams that send as fast as they are read.
    BulkStreams,
    /// A request of 64 bytes after the other, on kept connections.
    SmallRequests,
    /// Connections in a row, closed once greeted.
    Churn,
    /// TLS handshakes with a good certificate, in a row.
    GoodHandshakes,
    /// TLS handshakes with a certificate that nobody trusts.
    BadHandshakes,
    /// Handshakes that are sent a byte at a time.
    SlowLoris,
    /// Connections to the tunnel port that send nothing.
    HalfOpen,
    /// Streams of a tunnel whose answers have no window.
    ZeroWindow,
    /// Streams of a tunnel that are reset as they are opened.
    RapidReset,
    /// A header block of a tunnel that never ends.
    Continuation,
    /// PING frames on a tunnel.
    Pings,
    /// SETTINGS frames on a tunnel.
    Settings,
    /// Connections on which nothing is said.
    IdleConnections,
    /// Connections whose data is left unread.
    UnreadData,
    /// Connections that are begun, and waited for by nobody.
    BegunConnections,
    /// Connections to ever other addresses, which the worker has to look up.
    Lookups,
}

impl Load {
    /// Every load.
    pub const ALL: [Self; 16] = [
        Self::BulkStreams,
        Self::SmallRequests,
        Self::Churn,
        Self::GoodHandshakes,
        Self::BadHandshakes,
        Self::SlowLoris,
        Self::HalfOpen,
        Self::ZeroWindow,
        Self::RapidReset,
        Self::Continuation,
        Self::Pings,
        Self::Settings,
        Self::IdleConnections,
        Self::UnreadData,
        Self::BegunConnections,
        Self::Lookups,
    ];

    /// What it is called, and what it counts.
    #[must_use]
    pub fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::BulkStreams => ("bulk streams", "bytes"),
            Self::SmallRequests => ("small requests", "requests"),
            Self::Churn => ("connection churn", "connections"),
            Self::GoodHandshakes => ("handshakes, good certificate", "handshakes"),
            Self::BadHandshakes => ("handshakes, bad certificate", "handshakes"),
            Self::SlowLoris => ("slow-loris handshakes", "connections"),
            Self::HalfOpen => ("half-open handshakes", "connections"),
            Self::ZeroWindow => ("HTTP/2 zero window", "streams"),
            Self::RapidReset => ("HTTP/2 rapid reset", "streams"),
            Self::Continuation => ("HTTP/2 CONTINUATION", "frames"),
            Self::Pings => ("HTTP/2 PING", "frames"),
            Self::Settings => ("HTTP/2 SETTINGS", "frames"),
            Self::IdleConnections => ("idle connections", "connections"),
            Self::UnreadData => ("unread data", "connections"),
            Self::BegunConnections => ("begun connections", "connections"),
            Self::Lookups => ("look-ups", "connections"),
        }
    }

    /// How it is called on `mesh-lab-load`'s command line.
    fn mode(self) -> &'static str {
        match self {
            Self::BulkStreams => "bulk",
            Self::SmallRequests => "requests",
            Self::Churn => "churn",
            Self::GoodHandshakes | Self::BadHandshakes => "handshakes",
            Self::SlowLoris => "trickle",
            Self::HalfOpen => "silent",
            Self::ZeroWindow => "zero-window",
            Self::RapidReset => "rapid-reset",
            Self::Continuation => "continuation",
            Self::Pings => "pings",
            Self::Settings => "settings",
            Self::IdleConnections => "idle",
            Self::UnreadData => "unread",
            Self::BegunConnections => "connects",
            Self::Lookups => "lookups",
        }
    }

    /// Whether it needs a tunnel, and with it HTTP/2.
    #[must_use]
    pub fn is_http2(self) -> bool {
        matches!(
            self,
            Self::ZeroWindow | Self::RapidReset | Self::Continuation | Self::Pings | Self::Settings
        )
    }

    /// Whether it comes from outside, at the tunnel port.
    #[must_use]
    pub fn is_at_the_door(self) -> bool {
        let handshakes = [
            Self::GoodHandshakes,
            Self::BadHandshakes,
            Self::SlowLoris,
            Self::HalfOpen,
        ];
        handshakes.contains(&self) || self.is_http2()
    }

    /// Starts it.
    ///
    /// # Errors
    /// If the site lacks what it needs, or it can't be started.
    pub fn start(self, site: &Site<'_>, at_once: usize, time: Duration) -> Result<Running> {
        let door = || site.door.as_ref().context("this way has no tunnel port");
        let (pod, to, more) = if self.is_at_the_door() {
            let door = door()?;
            let credentials = match self {
                Self::BadHandshakes => Some(&door.bad),
                Self::SlowLoris | Self::HalfOpen => None,
                _ => Some(&door.good),
            };
            let app = self.is_http2().then(|| site.flood.1.to_string());
            let credentials = credentials.map(|folder| folder.display().to_string());
            (
                door.stranger,
                door.address,
                credentials.into_iter().chain(app).collect(),
            )
        } else {
            let to = match self {
                Self::BulkStreams | Self::UnreadData => site.flood.0,
                Self::Lookups => site.nowhere,
                _ => site.serve,
            };
            (site.client, to, Vec::new())
        };
        let command = pod.command("mesh-lab-load").arg(self.mode());
        let command = command.args([to.to_string(), at_once.to_string()]);
        let app = command
            .arg(time.as_secs_f64().to_string())
            .args(more)
            .spawn()?;
        Ok(Running {
            load: self,
            app,
            time,
        })
    }
}

/// Where a load is made.
#[derive(Debug)]
pub struct Site<'a> {
    /// The pod whose app makes loads.
    pub client: &'a Pod,
    /// Where it reaches its peer's `mesh-lab-app serve`.
    pub serve: SocketAddr,
    /// Where it reaches its peer's `mesh-lab-app flood`, and where that is.
    pub flood: (SocketAddr, SocketAddr),
    /// The first of many addresses that nobody has.
    pub nowhere: SocketAddr,
    /// The way in from outside.
    pub door: Option<Door<'a>>,
}

/// A port that takes mutual TLS, and somebody to knock.
#[derive(Debug)]
pub struct Door<'a> {
    /// The port.
    pub address: SocketAddr,
    /// A pod that is not in the mesh.
    pub stranger: &'a Pod,
    /// Folder of credentials that are taken.
    pub good: PathBuf,
    /// Folder of credentials that are not.
    pub bad: PathBuf,
}

/// A load that runs.
#[derive(Debug)]
pub struct Running {
    load: Load,
    app: App,
    time: Duration,
}

/// What a load has achieved.
#[derive(Clone, Copy, Debug)]
pub struct Achieved {
    /// Which.
    pub load: Load,
    /// How much was done, of what [`Load::title`] says.
    pub done: u64,
    /// How often it was turned away, or cut off.
    pub refused: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Running {
    /// Waits for its end.
    ///
    /// # Errors
    /// If it failed, or does not end.
    pub fn finish(mut self) -> Result<Achieved> {
        let what = || format!("load `{}`", self.load.title().0);
        let status = self.app.wait(self.time + MAY_END_IN).with_context(what)?;
        anyhow::ensure!(
            status.success(),
            "{}: {status}: {}",
            what(),
            self.app.stderr()
        );
        let said = told(&self.app).with_context(what)?;
        Ok(Achieved {
            load: self.load,
            done: number(&said, "done")?,
            refused: number(&said, "refused")?,
            seconds: seconds(&said)?,
        })
    }
}
