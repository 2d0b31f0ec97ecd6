//! A small app for pods of the lab, to see what an app sees.
//!
//! `mesh-lab-app serve PORT [ADDRESS]` accepts connections; to each it says in one line
//! whom it took it to be from (`accept`, `getpeername`) and for (`getsockname`), also on
//! standard output, and then echoes until the client's end of stream.
//!
//! `mesh-lab-app dial ADDRESS:PORT` connects and prints the line of `getpeername` and
//! `getsockname`, then the server's line; then it sends its standard input and prints what
//! comes back.

use std::io::{self, BufRead, BufReader, Write, copy};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", port] => serve(Ipv6Addr::UNSPECIFIED.into(), port),
        ["serve", port, address] => match address.parse() {
            Ok(address) => serve(address, port),
            Err(_) => Err(io::Error::other(format!("no address: {address}"))),
        },
        ["dial", target] => dial(target),
        _ => Err(io::Error::other(
            "usage: mesh-lab-app serve PORT [ADDRESS] | dial ADDRESS:PORT",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-lab-app: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: IpAddr, port: &str) -> io::Result<()> {
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let listener = TcpListener::bind(SocketAddr::new(address, port))?;
    loop {
        let (stream, accepted_from) = listener.accept()?;
        thread::Builder::new().stack_size(64 << 10).spawn(move || {
            if let Err(error) = answer(&stream, accepted_from) {
                eprintln!("connection from {accepted_from}: {error}");
            }
        })?;
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

fn dial(target: &str) -> io::Result<()> {
    let stream = TcpStream::connect(target)?;
    println!(
        "peer={} local={}",
        plain(stream.peer_addr()?),
        plain(stream.local_addr()?)
    );
    let mut from_server = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    from_server.read_line(&mut line)?;
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
