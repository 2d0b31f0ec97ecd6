//! Loads at a tunnel port, before there is a tunnel.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mesh_lab::forger::{self, Credentials};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::tally::{Load, Tally};

/// Pause between the bytes of a handshake that trickles.
const DRIP: Duration = Duration::from_millis(100);

/// A client with the credentials in that folder; without any if it is called `none`.
pub(crate) fn config(folder: &Path) -> io::Result<Arc<ClientConfig>> {
    let own = match folder.to_str() {
        Some("none") => None,
        _ => Some(Credentials::read(folder).map_err(Error::other)?),
    };
    let mut config = forger::client(own).map_err(Error::other)?;
    // Each handshake is a whole one.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

pub(crate) fn session(load: &Load, config: &Arc<ClientConfig>) -> io::Result<ClientConnection> {
    let name = ServerName::IpAddress(load.to.ip().into());
    ClientConnection::new(config.clone(), name).map_err(Error::other)
}

/// One handshake, to the server's first bytes: before, a client does not know whether its
/// certificate was taken.
pub(crate) fn handshakes(load: &Load, tally: &Tally, config: &Arc<ClientConfig>) -> io::Result<()> {
    let mut stream = StreamOwned::new(session(load, config)?, load.connect()?);
    stream.read_exact(&mut [0])?;
    tally.done(1);
    Ok(())
}

/// One connection that sends nothing, until it is closed.
pub(crate) fn silent(load: &Load, tally: &Tally, _: usize) -> io::Result<()> {
    let stream = load.connect()?;
    tally.done(1);
    until_closed(load, stream)
}

/// One connection that sends its first message a byte at a time.
pub(crate) fn trickle(load: &Load, tally: &Tally, _: usize) -> io::Result<()> {
    let config = config(Path::new("none"))?;
    let mut hello = Vec::new();
    session(load, &config)?.write_tls(&mut hello)?;
    let mut stream = load.connect()?;
    tally.done(1);
    // The last byte is never sent.
    for byte in &hello[..hello.len() - 1] {
        if load.over() {
            return Ok(());
        }
        stream.write_all(&[*byte])?;
        thread::sleep(DRIP.min(load.left()));
    }
    until_closed(load, stream)
}

fn until_closed(load: &Load, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(load.left().max(Duration::from_millis(1))))?;
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(ErrorKind::UnexpectedEof.into()),
    }
}
