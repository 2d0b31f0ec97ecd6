//! What the other end of an HTTP/2 connection allows, read off the frames it sends.
//!
//! The `h2` crate does not say how large the peer's windows are, but a tunnel must carry no
//! more streams than its connection window has room for, or streams that nobody reads hold
//! up those that somebody does (RFC 9113 §5.2, §6.5, §6.9).

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const HEADER: usize = 9;
const DEFAULT_WINDOW: u64 = 65_535;
const TYPE_SETTINGS: u8 = 0x4;
const TYPE_GOAWAY: u8 = 0x7;
const TYPE_WINDOW_UPDATE: u8 = 0x8;
const FLAG_ACK: u8 = 0x1;
const SETTING_MAX_CONCURRENT_STREAMS: u16 = 0x3;
const SETTING_INITIAL_WINDOW_SIZE: u16 = 0x4;

/// What the peer allows, as far as it has said.
pub(crate) struct PeerSettings {
    heard: Cell<bool>,
    acknowledged: Cell<bool>,
    leaving: Cell<bool>,
    changed: Cell<bool>,
    max_streams: Cell<u64>,
    stream_window: Cell<u64>,
    /// Bytes the connection window was opened to, all in all, while no data was sent.
    connection_window: Cell<u64>,
    data_sent: Cell<bool>,
}

impl PeerSettings {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            heard: Cell::new(false),
            acknowledged: Cell::new(false),
            leaving: Cell::new(false),
            changed: Cell::new(false),
            max_streams: Cell::new(u64::MAX),
            stream_window: Cell::new(DEFAULT_WINDOW),
            connection_window: Cell::new(DEFAULT_WINDOW),
            data_sent: Cell::new(false),
        })
    }

    /// The peer has sent its SETTINGS and acknowledged ours; by then it has opened its
    /// connection window too.
    pub(crate) fn heard(&self) -> bool {
        self.heard.get() && self.acknowledged.get()
    }

    /// The peer has sent GOAWAY.
    pub(crate) fn leaving(&self) -> bool {
        self.leaving.get()
    }

    /// Whether anything changed since the last call.
    pub(crate) fn take_changed(&self) -> bool {
        self.changed.replace(false)
    }

    /// From here on the connection window is replenished, not opened.
    pub(crate) fn data_sent(&self) {
        self.data_sent.set(true);
    }

    /// Streams that can't hold each other up, whatever their number: as many whole stream
    /// windows as fit the connection window, at least one.
    pub(crate) fn independent_streams(&self) -> u64 {
        let fit = self.connection_window.get() / self.stream_window.get().max(1);
        fit.min(self.max_streams.get()).max(1)
    }

    fn frame(&self, header: [u8; HEADER], payload: &[u8]) {
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        match header[3] {
            TYPE_SETTINGS if header[4] & FLAG_ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    let id = u16::from_be_bytes([setting[0], setting[1]]);
                    let value = [setting[2], setting[3], setting[4], setting[5]];
                    let value = u64::from(u32::from_be_bytes(value));
                    match id {
                        SETTING_MAX_CONCURRENT_STREAMS => self.max_streams.set(value),
                        SETTING_INITIAL_WINDOW_SIZE => self.stream_window.set(value),
                        _ => {}
                    }
                }
                self.heard.set(true);
                self.changed.set(true);
            }
            TYPE_SETTINGS => {
                self.acknowledged.set(true);
                self.changed.set(true);
            }
            TYPE_WINDOW_UPDATE if stream == 0 && !self.data_sent.get() => {
                if let Ok(increment) = payload.try_into().map(u32::from_be_bytes) {
                    let window = self.connection_window.get() + u64::from(increment);
                    self.connection_window.set(window);
                    self.changed.set(true);
                }
            }
            TYPE_GOAWAY => {
                self.leaving.set(true);
                self.changed.set(true);
            }
            _ => {}
        }
    }
}

/// Bytes of a payload that are looked at; SETTINGS are never longer in practice.
const LOOKED_AT: usize = 6 * 32;

/// Follows frame boundaries in a byte stream.
pub(super) struct Parser {
    header: [u8; HEADER],
    header_len: usize,
    payload: Vec<u8>,
    payload_left: usize,
}

impl Parser {
    pub(super) fn new() -> Self {
        Self {
            header: [0; HEADER],
            header_len: 0,
            payload: Vec::new(),
            payload_left: 0,
        }
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], settings: &PeerSettings) {
        while !bytes.is_empty() {
            if self.header_len < HEADER {
                let n = bytes.len().min(HEADER - self.header_len);
                self.header[self.header_len..self.header_len + n].copy_from_slice(&bytes[..n]);
                self.header_len += n;
                bytes = &bytes[n..];
                if self.header_len < HEADER {
                    return;
                }
                let length = [0, self.header[0], self.header[1], self.header[2]];
                self.payload_left = u32::from_be_bytes(length) as usize;
            }
            let n = bytes.len().min(self.payload_left);
            if matches!(self.header[3], TYPE_SETTINGS | TYPE_WINDOW_UPDATE) {
                let room = LOOKED_AT.saturating_sub(self.payload.len());
                self.payload.extend_from_slice(&bytes[..n.min(room)]);
            }
            self.payload_left -= n;
            bytes = &bytes[n..];
            if self.payload_left == 0 {
                settings.frame(self.header, &self.payload);
                self.payload = Vec::new();
                self.header_len = 0;
            }
        }
    }
}

/// A connection whose incoming frames are looked at as they pass.
pub(crate) struct Observed<IO> {
    io: IO,
    parser: RefCell<Parser>,
    settings: Rc<PeerSettings>,
}

impl<IO> Observed<IO> {
    pub(crate) fn new(io: IO, settings: Rc<PeerSettings>) -> Self {
        Self {
            io,
            parser: RefCell::new(Parser::new()),
            settings,
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Observed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, into))?;
        let mut parser = self.parser.borrow_mut();
        parser.feed(&into.filled()[before..], &self.settings);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Observed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = len[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn setting(id: u16, value: u32) -> Vec<u8> {
        [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()
    }

    #[test]
    fn streams_follow_from_windows_wherever_the_bytes_are_cut() {
        let bytes = [
            frame(4, 0, 0, &[setting(4, 4 << 20), setting(3, 100)].concat()),
            frame(0, 0, 1, &[7; 300]),
            frame(8, 0, 0, &((16 << 20) - 65_535u32).to_be_bytes()),
            frame(4, 1, 0, &[]),
        ]
        .concat();
        for step in [1, 2, 7, 10, 400, 4096] {
            let settings = PeerSettings::new();
            let mut parser = Parser::new();
            assert!(!settings.heard());
            assert_eq!(settings.independent_streams(), 1);
            for piece in bytes.chunks(step) {
                parser.feed(piece, &settings);
            }
            assert!(settings.heard() && !settings.leaving());
            assert_eq!(settings.independent_streams(), 4);
            parser.feed(&frame(7, 0, 0, &[0; 8]), &settings);
            assert!(settings.leaving());
        }
    }

    #[test]
    fn replenishing_is_not_opening() {
        let settings = PeerSettings::new();
        let mut parser = Parser::new();
        parser.feed(&frame(4, 0, 0, &setting(4, 65_535)), &settings);
        settings.data_sent();
        parser.feed(&frame(8, 0, 0, &1_000_000u32.to_be_bytes()), &settings);
        parser.feed(&frame(8, 0, 3, &1_000_000u32.to_be_bytes()), &settings);
        assert_eq!(settings.independent_streams(), 1);
        parser.feed(&frame(4, 0, 0, &setting(3, 0)), &settings);
        assert_eq!(settings.independent_streams(), 1);
    }
}
