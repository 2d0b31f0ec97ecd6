//! Calls as an app of a pod makes them, made by the test itself in the pod's network
//! namespace, to the lab's own server (`mesh-lab-app serve`) or to a web server.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// How long a call may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Called {
    /// The server at this address answered.
    Served(SocketAddr),
    /// `connect` failed, with this errno.
    NotConnected(i32),
    /// It was connected, and reset before the server's first byte.
    Reset,
    /// It was connected, and closed without a byte or an error.
    Closed,
    /// Nothing happened in [`PATIENCE`].
    Silent,
}

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served(by) => write!(f, "served by {by}"),
            Self::NotConnected(errno) => {
                write!(f, "connect: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::Reset => f.write_str("reset"),
            Self::Closed => f.write_str("closed without a word"),
            Self::Silent => write!(f, "neither answered nor refused in {PATIENCE:?}"),
        }
    }
}

impl Called {
    /// Whether a server answered.
    #[must_use]
    pub fn served(&self) -> bool {
        matches!(self, Self::Served(_))
    }
}

/// Calls the lab's own server once.
#[must_use]
pub fn tcp(netns: &Netns, to: SocketAddr) -> Called {
    match Open::dial(netns, to) {
        Ok(open) => Called::Served(open.server),
        Err(called) => called,
    }
}

/// A connection to the lab's own server that stays open.
#[derive(Debug)]
pub struct Open {
    stream: BufReader<TcpStream>,
    /// The address that the server says it has.
    pub server: SocketAddr,
}

impl Open {
    /// Connects and waits for the server's greeting.
    ///
    /// # Errors
    /// How the call ended else.
    pub fn dial(netns: &Netns, to: SocketAddr) -> Result<Self, Called> {
        let stream = netns.run(|| TcpStream::connect_timeout(&to, PATIENCE));
        let stream = stream.map_err(|error| match error.raw_os_error() {
            // It was, so soon that the wait for the connection saw the reset.
            Some(libc::ECONNRESET) => Called::Reset,
            Some(errno) => Called::NotConnected(errno),
            None => Called::Silent,
        })?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        let read = stream
            .get_ref()
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.read_line(&mut line));
        match read {
            Ok(0) => Err(Called::Closed),
            Err(error) if is_timeout(&error) => Err(Called::Silent),
            Err(_) => Err(Called::Reset),
            Ok(_) => {
                let server = line.trim_end().rsplit_once("local=");
                let server = server.and_then(|(_, address)| address.parse().ok());
                let server = server.ok_or(Called::Closed)?;
                Ok(Self { stream, server })
            }
        }
    }

    /// Sends a word and has it echoed.
    ///
    /// # Errors
    /// If the connection is cut, or silent for [`PATIENCE`].
    pub fn ping(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(b"ping\n")?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(_) if line == "ping\n" => Ok(()),
            Ok(_) => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the connection to be ended by its own node's kernel (`ECONNABORTED`), or by the
    /// other end (`ECONNRESET`).
    ///
    /// # Errors
    /// As [`Self::wait_reset`].
    pub fn wait_cut(&mut self) -> Result<()> {
        match self.stream.read(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error).context("waiting for the end"),
            Ok(read) => bail!("waiting for the end: {read} bytes came instead"),
        }
    }

    /// Waits for the connection to be reset, and returns when it was.
    ///
    /// # Errors
    /// If it is not in [`PATIENCE`], or ends in another way.
    pub fn wait_reset(&mut self) -> Result<Instant> {
        match self.stream.read(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Instant::now()),
            Err(error) => Err(error).context("waiting for a reset"),
            Ok(read) => bail!("waiting for a reset: {read} bytes came instead"),
        }
    }
}

/// `GET path` over HTTP/1.0; returns the body.
///
/// # Errors
/// If it can't be had in `timeout` for each step, or the status is not 200.
pub fn http(netns: &Netns, to: SocketAddr, path: &str, timeout: Duration) -> Result<String> {
    let mut stream = netns.run(|| TcpStream::connect_timeout(&to, timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => bail!("{to}{path} answered {answer:?}"),
    }
}

/// Whether a datagram from one namespace reaches a port in another, and the answer comes back.
///
/// # Errors
/// If the sockets can't be made. What refuses the datagram is no error.
pub fn udp(from: (&Netns, SocketAddr), to: (&Netns, SocketAddr)) -> Result<Datagram> {
    let server = to.0.run(|| UdpSocket::bind(to.1)).context("the server")?;
    let client = from
        .0
        .run(|| UdpSocket::bind(from.1))
        .context("the client")?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(UDP_PATIENCE))?;
    }
    if let Err(error) = client.connect(to.1).and_then(|()| client.send(b"ping")) {
        return Ok(Datagram::NotSent(error.raw_os_error().unwrap_or_default()));
    }
    let mut buffer = [0; 64];
    let Ok((_, caller)) = server.recv_from(&mut buffer) else {
        return Ok(Datagram::Lost);
    };
    let answered = server.send_to(b"pong", caller).is_ok() && client.recv(&mut buffer).is_ok();
    Ok(match answered {
        true => Datagram::Answered,
        false => Datagram::NotAnswered,
    })
}

/// How long a datagram may take; what is dropped is waited for as long.
const UDP_PATIENCE: Duration = Duration::from_millis(300);

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// It arrived, and so did the answer.
    Answered,
    /// It arrived; the answer did not.
    NotAnswered,
    /// It did not arrive.
    Lost,
    /// `connect` or `send` failed with this errno.
    NotSent(i32),
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
