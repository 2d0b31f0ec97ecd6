//! Much data in both directions at once, every byte checked.

use std::io::{self, Error, Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::thread;

const CHUNK: usize = 64 << 10;
const TO_SERVER: u64 = 0x9e37_79b9_7f4a_7c15;
const TO_CLIENT: u64 = 0xd1b5_4a32_d192_ed03;

/// Answers [`call`]s: receives and sends as many bytes as the client announces.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    loop {
        let (mut stream, from) = listener.accept()?;
        thread::spawn(move || {
            let mut bytes = [0; 8];
            let done = stream
                .read_exact(&mut bytes)
                .and_then(|()| exchange(&stream, u64::from_be_bytes(bytes), TO_CLIENT, TO_SERVER));
            println!("{from}: {done:?}");
        });
    }
}

/// Announces `bytes`, then sends and receives that many at once.
pub(crate) fn call(to: &str, bytes: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(&bytes.to_be_bytes())?;
    exchange(&stream, bytes, TO_SERVER, TO_CLIENT)?;
    println!("{bytes} bytes in each direction");
    Ok(())
}

fn exchange(stream: &TcpStream, bytes: u64, sends: u64, receives: u64) -> io::Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, bytes, sends));
        receive(stream, bytes, receives)?;
        sender
            .join()
            .map_err(|_| Error::other("the sender panicked"))?
    })
}

fn send(mut stream: &TcpStream, bytes: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern(seed);
    let mut left = bytes;
    let mut chunk = [0; CHUNK];
    while left > 0 {
        pattern.fill(&mut chunk);
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(&chunk[..now])?;
        left -= now as u64;
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: &TcpStream, bytes: u64, seed: u64) -> io::Result<()> {
    let mut pattern = Pattern(seed);
    let mut left = bytes;
    let (mut chunk, mut expected) = ([0; CHUNK], [0; CHUNK]);
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.read_exact(&mut chunk[..now])?;
        pattern.fill(&mut expected);
        if chunk[..now] != expected[..now] {
            let at = bytes - left;
            return Err(Error::other(format!("bytes differ after byte {at}")));
        }
        left -= now as u64;
    }
    match stream.read(&mut chunk)? {
        0 => Ok(()),
        more => Err(Error::other(format!("{more} bytes too many"))),
    }
}

/// A stream of bytes that repeats nowhere near (xorshift64).
struct Pattern(u64);

impl Pattern {
    fn fill(&mut self, chunk: &mut [u8; CHUNK]) {
        for word in chunk.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}
