//! Reads ahead of the TLS library, which asks its socket for 4 KiB at a time.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::worker::{heap, turn};

/// Bytes asked of the socket at a time.
const AHEAD: usize = 64 * 1024;
/// Buffers kept for reuse in a thread.
const KEPT: usize = 2;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A TCP connection with a read buffer that exists only while it holds something.
pub(crate) struct ReadAhead {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
}

impl ReadAhead {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            start: 0,
        }
    }

    fn give_back(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        self.start = 0;
        buffer.clear();
        SPARE.with_borrow_mut(|spare| {
            if buffer.capacity() > 0 && spare.len() < KEPT {
                spare.push(buffer);
            }
        });
    }

    fn hand_out(&mut self, into: &mut ReadBuf<'_>) {
        let rest = &self.buffer[self.start..];
        let n = rest.len().min(into.remaining());
        into.put_slice(&rest[..n]);
        self.start += n;
        if self.start == self.buffer.len() {
            self.give_back();
        }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Also before what is there already: it may hold thousands of frames.
        turn::give_way();
        if self.buffer.is_empty() {
            heap::used();
            ready!(self.stream.poll_read_ready(cx))?;
            let mut buffer = SPARE
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| Vec::with_capacity(AHEAD));
            let mut read = ReadBuf::uninit(buffer.spare_capacity_mut());
            let result = Pin::new(&mut self.stream).poll_read(cx, &mut read);
            let n = read.filled().len();
            // SAFETY: the first `n` bytes have just been filled.
            unsafe { buffer.set_len(n) };
            self.buffer = buffer;
            if n == 0 {
                self.give_back();
                return result;
            }
        }
        self.hand_out(into);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        turn::give_way();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        turn::give_way();
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.give_back();
    }
}
