//! The traffic under which things are done.

use std::fmt;
use std::io::{Error, Result as IoResult};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{CLIENT, PORT, SERVER, STRANGER, TROUBLED};
use crate::traffic::{Seen, Traffic, call};
use crate::{Lab, Pod};

pub(super) fn target(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), PORT)
}

/// Traffic that goes on.
pub(super) struct Load {
    /// Of pods that nothing is done to: none of it may fail.
    steady: [(&'static str, Traffic); 3],
    /// Of the others, and what of it failed.
    troubled: Vec<Traffic>,
    failed: Arc<AtomicU64>,
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Loads {
    steady: u64,
    longest: Duration,
    troubled: u64,
    failed: u64,
}

impl Load {
    pub(super) fn start(lab: &Lab) -> Self {
        let server = target(lab.pod(SERVER));
        let steady = [
            ("a stream", Traffic::stream(lab.pod(CLIENT), server)),
            ("calls", Traffic::calls(lab.pod(CLIENT), server)),
            ("denied calls", denied(lab.pod(STRANGER), server)),
        ];
        let failed = Arc::new(AtomicU64::new(0));
        let [a, b, c] = TROUBLED.map(|key| lab.pod(key));
        let troubled = vec![
            calls(a, target(b), &failed),
            calls(b, target(a), &failed),
            calls(c, target(b), &failed),
            calls(c, server, &failed),
            datagrams(a, target(b)),
        ];
        Self {
            steady,
            troubled,
            failed,
        }
    }

    pub(super) fn finish(self) -> Result<Loads> {
        let mut loads = Loads::default();
        for (what, traffic) in self.steady {
            let Seen {
                done,
                longest,
                failed,
            } = traffic.finish();
            ensure!(
                failed.is_empty(),
                "{what} between pods that nothing was done to: {failed:?}"
            );
            loads.steady += done;
            loads.longest = loads.longest.max(longest);
        }
        for traffic in self.troubled {
            loads.troubled += traffic.finish().done;
        }
        loads.failed = self.failed.load(Ordering::Relaxed);
        Ok(loads)
    }
}

impl Loads {
    pub(super) fn add(&mut self, other: &Self) {
        self.steady += other.steady;
        self.longest = self.longest.max(other.longest);
        self.troubled += other.troubled;
        self.failed += other.failed;
    }
}

impl fmt::Display for Loads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "between pods that nothing was done to: {} exchanges, none failed, the longest took {:?}; \
             between the others: {} calls and datagrams, {} failed",
            self.steady, self.longest, self.troubled, self.failed
        )
    }
}

/// Calls that must never be answered.
fn denied(from: &Pod, to: SocketAddr) -> Traffic {
    Traffic::start(from, move || {
        move |_| match call(to) {
            Ok(()) => Err(Error::other("a denied call was served")),
            Err(_) => Ok(()),
        }
    })
}

/// Calls that may fail while something is done to either end.
fn calls(from: &Pod, to: SocketAddr, failed: &Arc<AtomicU64>) -> Traffic {
    let failed = failed.clone();
    Traffic::start(from, move || {
        move |_| {
            if call(to).is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    })
}

/// Datagrams that nothing allows.
fn datagrams(from: &Pod, to: SocketAddr) -> Traffic {
    Traffic::start(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0");
        move |_| -> IoResult<()> {
            // Refused or lost: nobody waits for it.
            let _refused = socket.as_ref().map(|socket| socket.send_to(b"unasked", to));
            Ok(())
        }
    })
}
