//! The stream of refusals out of the ring buffer.

use std::{fmt, io};

use aya::maps::{Map, MapData, RingBuf};
use mesh_common::{RefusalEvent, map_name};
use tokio::io::unix::AsyncFd;

use super::abi;
use super::error::{CaptureError, Result};
use super::pins::Pins;

/// Refusals, in the order of the ring buffer. What isn't read in time is not lost to the
/// counters.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let ring = abi::data(pins, map_name::EVENTS)
            .and_then(|data| RingBuf::try_from(Map::RingBuf(data)))
            .map_err(abi::failed(map_name::EVENTS))?;
        // SAFETY: the ring buffer owns its descriptor and never replaces it.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(|e| failed(e.into_parts().1))?;
        Ok(Self { ring })
    }

    /// The next refusal. Cancel-safe.
    ///
    /// # Errors
    /// If the ring buffer's descriptor fails, or an entry has another size than this agent's ABI.
    pub async fn next(&mut self) -> Result<RefusalEvent> {
        loop {
            let mut ready = self.ring.readable_mut().await.map_err(failed)?;
            if let Some(item) = ready.get_inner_mut().next() {
                return decode(&item);
            }
            ready.clear_ready();
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<RefusalEvent> {
    if bytes.len() != size_of::<RefusalEvent>() {
        let what = format!("an entry of {} bytes", bytes.len());
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, what)));
    }
    // SAFETY: as long as the type, which has no padding and takes any bytes; read unaligned.
    Ok(unsafe { bytes.as_ptr().cast::<RefusalEvent>().read_unaligned() })
}

fn failed(source: io::Error) -> CaptureError {
    CaptureError::Io {
        action: "reading the ring buffer",
        path: map_name::EVENTS.into(),
        source,
    }
}
