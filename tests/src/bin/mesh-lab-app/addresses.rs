//! What an app sees of its connections' addresses.

use std::io::{self, BufRead, BufReader, Write, copy};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use socket2::{Domain, Socket, Type};

/// Accepts connections; to each it says in one line whom it took it to be from (`accept`,
/// `getpeername`) and for (`getsockname`), also on standard output, and then echoes until
/// the client's end of stream.
pub(crate) fn serve(address: IpAddr, ports: &[u16]) -> io::Result<()> {
    let bound = ports
        .iter()
        .map(|port| listen(SocketAddr::new(address, *port), true));
    let listeners: io::Result<Vec<TcpListener>> = bound.collect();
    let threads: Vec<_> = listeners?
        .into_iter()
        .map(|listener| thread::spawn(move || answer_all(&listener)))
        .collect();
    let mut ends = threads.into_iter().map(thread::JoinHandle::join);
    ends.try_for_each(|end| end.map_err(|_| io::Error::other("a listener's thread panicked"))?)
}

/// As [`serve`], without SO_REUSEADDR.
pub(crate) fn serve_exclusive(port: u16) -> io::Result<()> {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    answer_all(&listen(any, false)?)
}

/// The standard library's listeners always have SO_REUSEADDR, and a backlog of 128: a burst
/// overflows that, with or without a mesh.
fn listen(address: SocketAddr, reuse: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(reuse)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn answer_all(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, accepted_from) = listener.accept()?;
        let answer = move || {
            if let Err(error) = answer(&stream, accepted_from) {
                eprintln!("connection from {accepted_from}: {error}");
            }
        };
        thread::Builder::new().stack_size(64 << 10).spawn(answer)?;
    }
}

fn answer(stream: &TcpStream, accepted_from: SocketAddr) -> io::Result<()> {
    let line = format!(
        "accept={} peer={} local={}\n",
        plain(accepted_from),
        plain(stream.peer_addr()?),
        plain(stream.local_addr()?)
    );
    io::stdout().write_all(line.as_bytes())?;
    let mut writer = stream;
    writer.write_all(line.as_bytes())?;
    copy(&mut &*stream, &mut writer)?;
    stream.shutdown(Shutdown::Write)
}

/// Connects and prints the line of `getpeername` and `getsockname`, then the server's line;
/// then sends standard input and prints what comes back.
pub(crate) fn dial(to: &str) -> io::Result<()> {
    let stream = TcpStream::connect(to)?;
    println!(
        "peer={} local={}",
        plain(stream.peer_addr()?),
        plain(stream.local_addr()?)
    );
    let mut from_server = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    if from_server.read_line(&mut line)? == 0 {
        return Err(io::Error::other("the server closed without a word"));
    }
    print!("{line}");
    copy(&mut io::stdin(), &mut &stream)?;
    stream.shutdown(Shutdown::Write)?;
    copy(&mut from_server, &mut io::stdout())?;
    Ok(())
}

/// v4-mapped addresses as IPv4.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
