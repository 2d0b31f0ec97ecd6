//! What is on the wire between the nodes: a capture of a port of the fabric, TCP streams
//! put together again, and what they turn out to be.

mod capture;
mod streams;
mod tls;

pub use capture::{Capture, Recording};
pub use streams::{Direction, Endpoint, Streams};
pub use tls::{Handshake, StreamFault, check_stream};

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

/// What [`Streams::assert_all_tls`] saw.
#[derive(Clone, Debug, Default)]
pub struct TlsSummary {
    /// TCP connections with payload.
    pub connections: usize,
    /// Bytes of payload, both directions.
    pub bytes: usize,
    /// Connections by the port that was dialled.
    pub ports: BTreeMap<u16, usize>,
    /// Connections by what the server chose: TLS version and key exchange.
    pub handshakes: BTreeMap<String, usize>,
}

impl Streams {
    /// Checks that each direction of each connection is TLS from its first byte to its last,
    /// begins with the right hello, and that the server chose TLS 1.3.
    ///
    /// # Errors
    /// Naming the first connection that isn't, with the bytes where it isn't. Also if there
    /// is no connection at all: then nothing was shown.
    pub fn assert_all_tls(&self) -> Result<TlsSummary> {
        let mut summary = TlsSummary::default();
        for direction in self.directions() {
            let bytes = direction.payload()?;
            if bytes.is_empty() {
                continue;
            }
            let handshake = match check_stream(&bytes, direction.from_client) {
                Ok(handshake) => handshake,
                Err(fault) => bail!("{direction}: {fault}"),
            };
            summary.bytes += bytes.len();
            if direction.from_client {
                summary.connections += 1;
                *summary.ports.entry(direction.to.port()).or_default() += 1;
            } else if let Some(handshake) = handshake {
                ensure!(
                    handshake.version == tls::TLS_1_3,
                    "{direction}: the server chose {handshake}"
                );
                *summary.handshakes.entry(handshake.to_string()).or_default() += 1;
            }
        }
        ensure!(
            summary.connections > 0,
            "no TCP connection with payload was captured"
        );
        Ok(summary)
    }
}
