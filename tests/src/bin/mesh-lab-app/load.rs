//! Many connections: at once, in a row, stalled.

use std::io::{self, BufRead, BufReader, Error, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Opens all connections, then uses each while all are open.
pub(crate) fn burst(to: &str, count: usize) -> io::Result<()> {
    let open = |index| connect(to).map_err(|e| told(index, &e));
    let streams: Result<Vec<_>, _> = (0..count).map(open).collect();
    let mut streams = streams?;
    println!("{count} open");
    for (index, stream) in streams.iter_mut().enumerate() {
        use_once(stream, index).map_err(|e| told(index, &e))?;
    }
    println!("{count} used");
    Ok(())
}

/// One connection after the other; this end closes first.
pub(crate) fn churn(to: &str, count: usize) -> io::Result<()> {
    for index in 0..count {
        let mut stream = connect(to).map_err(|e| told(index, &e))?;
        use_once(&mut stream, index).map_err(|e| told(index, &e))?;
    }
    println!("{count} done");
    Ok(())
}

fn told(index: usize, error: &Error) -> Error {
    Error::new(error.kind(), format!("connection {index}: {error}"))
}

fn connect(to: &str) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

/// Reads the server's line of addresses, sends a word and has it echoed.
fn use_once(stream: &mut BufReader<TcpStream>, index: usize) -> io::Result<()> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    if !line.starts_with("accept=") {
        return Err(Error::other(format!("no line of addresses but {line:?}")));
    }
    let word = format!("{index}\n");
    stream.get_mut().write_all(word.as_bytes())?;
    line.clear();
    stream.read_line(&mut line)?;
    if line != word {
        return Err(Error::other(format!("{word:?} came back as {line:?}")));
    }
    Ok(())
}

/// Sends to each client until it closes.
pub(crate) fn flood(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        let send = move || while stream.write_all(&[0; 16 << 10]).is_ok() {};
        thread::Builder::new().stack_size(64 << 10).spawn(send)?;
    }
}

/// Reads one byte of each connection and then no more, until killed.
pub(crate) fn stall(to: &str, count: usize) -> io::Result<()> {
    let mut streams = Vec::new();
    for index in 0..count {
        let mut stream = TcpStream::connect(to).map_err(|e| told(index, &e))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut [0]).map_err(|e| told(index, &e))?;
        streams.push(stream);
    }
    println!("{count} stalled");
    loop {
        thread::park();
    }
}
