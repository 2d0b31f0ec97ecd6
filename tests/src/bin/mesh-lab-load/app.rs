//! Loads of a pod's own app: it dials through its own worker.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread;

use socket2::{Domain, Socket, Type};

use crate::tally::{Load, Tally};

/// Bytes of a small request, and of its answer.
pub(crate) const REQUEST: usize = 64;

/// Connects to `mesh-lab-app serve` and reads its greeting, which ends with a newline.
pub(crate) fn greeted(load: &Load) -> io::Result<TcpStream> {
    let mut stream = load.connect()?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(stream)
}

pub(crate) fn bulk(load: &Load, tally: &Tally, _: usize) -> io::Result<()> {
    let mut stream = load.connect()?;
    let mut chunk = vec![0; 64 << 10];
    while !load.over() {
        match stream.read(&mut chunk)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => tally.done(n as u64),
        }
    }
    Ok(())
}

pub(crate) fn requests(load: &Load, tally: &Tally, _: usize) -> io::Result<()> {
    let mut stream = greeted(load)?;
    let mut answer = [0; REQUEST];
    while !load.over() {
        stream.write_all(&[b'r'; REQUEST])?;
        stream.read_exact(&mut answer)?;
        tally.done(1);
    }
    Ok(())
}

pub(crate) fn churn(load: &Load, tally: &Tally, _: usize) -> io::Result<()> {
    load.connect()?.read_exact(&mut [0])?;
    tally.done(1);
    Ok(())
}

/// Keeps one connection on which nothing is said; a reset shows as the end of a read.
pub(crate) fn idle(load: &Load, tally: &Tally, _: usize) -> io::Result<()> {
    hold(load, tally, greeted(load)?)
}

/// Keeps one connection whose data is left unread.
pub(crate) fn unread(load: &Load, tally: &Tally, _: usize) -> io::Result<()> {
    let mut stream = load.connect()?;
    stream.read_exact(&mut [0])?;
    tally.done(1);
    // Not read, so a reset shows by the socket's error alone.
    while !load.over() {
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        thread::sleep(load.left().min(std::time::Duration::from_millis(50)));
    }
    Ok(())
}

fn hold(load: &Load, tally: &Tally, mut stream: TcpStream) -> io::Result<()> {
    tally.done(1);
    stream.set_read_timeout(Some(load.left().max(std::time::Duration::from_millis(1))))?;
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Connections that are only begun: each takes a place of what the kernel keeps of them.
pub(crate) fn connects(load: &Load, tally: &Tally) -> io::Result<()> {
    let mut begun = Vec::new();
    for _ in 0..load.at_once {
        if load.over() {
            break;
        }
        let socket = Socket::new(Domain::for_address(load.to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&load.to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => tally.refused(1),
            _ => {
                tally.done(1);
                begun.push(socket);
            }
        }
    }
    thread::sleep(load.left());
    Ok(())
}

/// An address that nobody has asked for yet, again and again.
pub(crate) fn lookups(load: &Load, tally: &Tally, index: usize) -> io::Result<()> {
    let IpAddr::V4(first) = load.to.ip() else {
        return Err(io::Error::other("lookups take an IPv4 address"));
    };
    for step in 0u32.. {
        if load.over() {
            break;
        }
        let number = u32::try_from(index).unwrap_or_default() << 14 | step & 0x3fff;
        let address = Ipv4Addr::from_bits(first.to_bits().wrapping_add(number));
        let to = SocketAddr::new(address.into(), load.to.port());
        let answered = load.connect_to(to).and_then(|mut s| s.read(&mut [0]));
        match answered {
            Ok(_) => {}
            Err(_) if load.over() => {}
            Err(_) => tally.refused(1),
        }
        tally.done(1);
    }
    Ok(())
}
