//! What the programs tell of, out of their ring buffers.

use std::marker::PhantomData;
use std::{fmt, io};

use aya::maps::{Map, MapData, RingBuf};
use mesh_common::{ForeignEvent, RefusalEvent, map_name};
use tokio::io::unix::AsyncFd;

use super::abi;
use super::error::{CaptureError, Result};
use super::pins::Pins;

/// An entry of a ring buffer.
///
/// # Safety
/// The type must have no padding, and any bytes of its size must be a value of it.
pub unsafe trait Event: Copy {
    /// Name of the ring buffer.
    const RING: &'static str;
}

// SAFETY: `mesh_common` asserts that its types have fixed-width integers and no padding.
unsafe impl Event for RefusalEvent {
    const RING: &'static str = map_name::EVENTS;
}

// SAFETY: as above.
unsafe impl Event for ForeignEvent {
    const RING: &'static str = map_name::FOREIGN;
}

/// Events, in the order of their ring buffer. What isn't read in time is not lost to the
/// counters.
pub struct Events<E = RefusalEvent> {
    ring: AsyncFd<RingBuf<MapData>>,
    of: PhantomData<E>,
}

impl<E: Event> Events<E> {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let ring = abi::data(pins, E::RING)
            .and_then(|data| RingBuf::try_from(Map::RingBuf(data)))
            .map_err(abi::failed(E::RING))?;
        // SAFETY: the ring buffer owns its descriptor and never replaces it.
        let ring = unsafe { AsyncFd::register(ring) };
        let ring = ring.map_err(|e| failed::<E>(e.into_parts().1))?;
        let of = PhantomData;
        Ok(Self { ring, of })
    }

    /// The next one. Cancel-safe.
    ///
    /// # Errors
    /// If the ring buffer's descriptor fails, or an entry has another size than this agent's ABI.
    pub async fn next(&mut self) -> Result<E> {
        loop {
            let mut ready = self.ring.readable_mut().await.map_err(failed::<E>)?;
            if let Some(item) = ready.get_inner_mut().next() {
                return decode(&item);
            }
            ready.clear_ready();
        }
    }
}

impl<E> fmt::Debug for Events<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

pub(crate) fn decode<E: Event>(bytes: &[u8]) -> Result<E> {
    if bytes.len() != size_of::<E>() {
        let what = format!("an entry of {} bytes", bytes.len());
        let source = io::Error::new(io::ErrorKind::InvalidData, what);
        return Err(failed::<E>(source));
    }
    // SAFETY: as long as the type, which has no padding and takes any bytes; read unaligned.
    Ok(unsafe { bytes.as_ptr().cast::<E>().read_unaligned() })
}

fn failed<E: Event>(source: io::Error) -> CaptureError {
    CaptureError::Io {
        action: "reading the ring buffer",
        path: E::RING.into(),
        source,
    }
}
