//! Pieces of a flow on their way from the app into a tunnel.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::metrics::{Count, Metrics};
use super::{heap, socket, turn};

/// Most bytes in one chunk: with its frame header (9 bytes) exactly four full TLS records.
pub(crate) const CHUNK: usize = 4 * 16_384 - 9;
/// Below this a chunk gets memory of its own size instead of a share of the thread's buffer,
/// so that what waits in a stalled stream does not pin more than eight times its size.
const SHARED_FROM: usize = 16 * 1024;
const SCRATCH: usize = 2 * (CHUNK + 9);

thread_local! {
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What a read from the app gave.
pub(crate) enum Read {
    Data(Bytes),
    Eof,
    NotReady,
}

/// Reads at most `max` bytes that are there already.
pub(crate) fn read_app(app: &TcpStream, max: usize) -> io::Result<Read> {
    turn::give_way();
    heap::used();
    let max = max.min(CHUNK);
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.capacity() < CHUNK {
            buffer.reserve(SCRATCH);
        }
        let spare: &mut [MaybeUninit<u8>] = &mut buffer.spare_capacity_mut()[..max];
        let mut read = None;
        // Anything less than was asked for means that the socket is empty: saying so saves
        // the call that would find it out.
        let tried = app.try_io(Interest::READABLE, || {
            let n = socket::receive(app, spare)?;
            read = Some(n);
            if n < max && n > 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match (read, tried) {
            (None, Err(e)) if e.kind() == io::ErrorKind::WouldBlock => Ok(Read::NotReady),
            (None, Err(e)) => Err(e),
            (None | Some(0), _) => Ok(Read::Eof),
            (Some(n), _) => {
                // SAFETY: `recv` has filled the first `n` bytes of the spare capacity.
                unsafe { buffer.set_len(n) };
                if n < SHARED_FROM {
                    let data = Bytes::copy_from_slice(buffer);
                    buffer.clear();
                    return Ok(Read::Data(data));
                }
                Ok(Read::Data(buffer.split().freeze()))
            }
        }
    })
}

/// Chunks of one stream that HTTP/2 holds and has not written yet.
pub(crate) struct InFlight {
    chunks: Cell<usize>,
    waker: RefCell<Option<Waker>>,
    metrics: Rc<Metrics>,
}

impl InFlight {
    pub(crate) fn new(metrics: Rc<Metrics>) -> Rc<Self> {
        Rc::new(Self {
            chunks: Cell::new(0),
            waker: RefCell::default(),
            metrics,
        })
    }

    /// Waits until everything handed over so far is written, or given up.
    pub(crate) async fn written(&self) {
        std::future::poll_fn(|cx| {
            if self.chunks.get() == 0 {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A piece of a stream that tells [`InFlight`] when HTTP/2 is done with it.
pub(crate) struct Chunk {
    bytes: Bytes,
    len: u64,
    stream: Option<Rc<InFlight>>,
}

impl Chunk {
    pub(crate) fn new(bytes: Bytes, stream: &Rc<InFlight>) -> Self {
        stream.chunks.set(stream.chunks.get() + 1);
        let len = bytes.len() as u64;
        stream.metrics.add(Count::Buffered, len);
        Self {
            bytes,
            len,
            stream: Some(stream.clone()),
        }
    }

    pub(crate) fn empty() -> Self {
        Self::of_worker(Bytes::new())
    }

    /// What the worker itself says: no flow waits for it.
    pub(crate) fn of_worker(bytes: Bytes) -> Self {
        Self {
            bytes,
            len: 0,
            stream: None,
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            stream.metrics.subtract(Count::Buffered, self.len);
            let left = stream.chunks.get() - 1;
            stream.chunks.set(left);
            if left == 0
                && let Some(waker) = stream.waker.borrow_mut().take()
            {
                waker.wake();
            }
        }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, n: usize) {
        self.bytes.advance(n);
    }
}
